"""The command `llmasos`: one file per verb, each thin over the Python API."""
