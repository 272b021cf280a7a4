"""LLMasOS on JAX. One config; from a laptop CPU to a TPU pod; an open format for the models.

Importing this package does not import JAX: a name is looked up when it is first used.
"""

__version__ = "0.1.0.dev0"
