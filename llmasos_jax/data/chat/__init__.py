"""Conversations as text: a model's chat template, and which of its text is the model's own."""
