"""Checkpoints of a training run: `orbax.py` writes and restores, `stored.py` reads leaf by leaf."""
