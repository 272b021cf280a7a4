"""Hugging Face folders, read into ours: one file per family, and what they share."""

from llmasos_jax.interop.hf.open import open_hf

__all__ = ["open_hf"]
