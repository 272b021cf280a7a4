"""The name of the LLMasOS standard: `llmasos.X` is `llmasos_jax.X`."""
