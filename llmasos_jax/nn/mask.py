"""Who sees whom: causality, windows, documents, padding, for each kernel to use its way."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visibility:
    """Which keys a query attends to.

    Attributes:
      q_index, k_index: int32 [1, T] and [1, S], place in the sequence (in decoding: the cache
        slot); with branches [B, T] and [B, S], the position.
      q_segments, k_segments: int32 [B, T] and [B, S]; a query sees its own segment only. 0 is
        padding. None: one segment.
      k_prefix: bool [B, S], keys that every query of their segment sees, those before them too;
        None has none.
      causal: whether a query sees only its own place and those before it.
      window: how many places back it sees, its own included (and as many ahead, if not causal);
        None sees all.
      q_branches, k_branches: int32 [B, T] and [B, S], ways in which a segment goes on; a query sees
        keys of branch 0, which all have in common, and of its own. In a row each branch comes after
        what is seen of branch 0. None: nothing branches.
    """

    q_index: jax.Array
    k_index: jax.Array
    q_segments: jax.Array | None
    k_segments: jax.Array | None
    k_prefix: jax.Array | None = None
    causal: bool = field(metadata={"static": True}, default=True)
    window: int | None = field(metadata={"static": True}, default=None)
    q_branches: jax.Array | None = None
    k_branches: jax.Array | None = None

    def mask(self) -> jax.Array:
        """True where the query sees the key, bool [B or 1, T, S]."""
        back = self.distance()
        seen = back >= 0 if self.causal else jnp.ones_like(back, bool)
        if self.k_prefix is not None:
            seen = seen | self.k_prefix[:, None, :]
        if self.window is not None:
            seen &= (back < self.window) & (back > -self.window)
        if self.q_segments is not None and self.k_segments is not None:
            seen = seen & (self.q_segments[:, :, None] == self.k_segments[:, None, :])
        if self.q_branches is not None and self.k_branches is not None:
            key = self.k_branches[:, None, :]
            seen = seen & ((key == 0) | (key == self.q_branches[:, :, None]))
        return seen

    def distance(self) -> jax.Array:
        """How far a key lies behind its query, int32 [1, T, S], with branches [B, T, S]."""
        return self.q_index[:, :, None] - self.k_index[:, None, :]
