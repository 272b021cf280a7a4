"""Tasks: what a model is asked, how it is scored, and what came out, so that it can be repeated."""
