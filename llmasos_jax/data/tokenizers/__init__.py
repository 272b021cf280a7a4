"""Tokenizers: what they promise, the kinds there are, how they are loaded and trained."""
