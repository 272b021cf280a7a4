"""Corpora as token ids on disk: how they are made, by many processes, and read."""
