"""A name or a path -> a model on this disk, of whatever kind, opened."""
