"""Gymnasium, or one line that says where it comes from."""

from __future__ import annotations

from llmasos_jax.errors import MissingExtraError

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.utils import seeding
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise MissingExtraError(
        f"environments are Gymnasium's ({error}); pip install 'llmasos-jax[eval]'"
    ) from error

__all__ = ["AutoresetMode", "VectorEnv", "batch_space", "gymnasium", "seeding", "spaces"]
