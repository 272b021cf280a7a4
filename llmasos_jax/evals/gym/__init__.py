"""Gymnasium environments of language, and models that act in them.

`import llmasos_jax.evals.gym.registered` makes their names known to `gymnasium.make`.
"""
