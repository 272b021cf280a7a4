"""GGUF, the one-file format of llama.cpp, read into ours."""

from llmasos_jax.interop.gguf.open import open_gguf

__all__ = ["open_gguf"]
