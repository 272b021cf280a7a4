"""Bias probes: what changes in a model's words when a person's name, gender or country does."""
