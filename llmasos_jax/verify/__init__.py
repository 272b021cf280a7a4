"""Shows on a user's own config that a run killed and started again is the run never killed."""
