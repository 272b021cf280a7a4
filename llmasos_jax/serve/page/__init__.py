"""The chat page of `llmasos serve`: one HTML file that asks for nothing else."""
