"""The key/value cache of decoding: fixed slots, one scalar slot for all rows.

Prompts are padded on the left, so that every row writes the same slot at the same step and rows
differ only in where they start::

    slot      0  1  2  3  4 | 5  6 ...
    row 0     .  .  a  b  c | new
    row 1     d  e  f  g  h | new          start = [2, 0]

A token's position is its slot minus its row's start.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, [B, S, K, H] (a leading axis more where layers are stacked)."""

    k: jax.Array
    v: jax.Array

    def write(self, k_btkh: jax.Array, v_btkh: jax.Array, slot: jax.Array) -> LayerCache:
        """Writes T tokens from `slot` on."""
        zero = jnp.zeros_like(slot)
        at = (zero, slot, zero, zero)
        return LayerCache(
            lax.dynamic_update_slice(self.k, k_btkh.astype(self.k.dtype), at),
            lax.dynamic_update_slice(self.v, v_btkh.astype(self.v.dtype), at),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The cache of a model.

    Attributes:
      layers: a tree like the model's layers (`prefix`, `periods`, `suffix`) of LayerCache.
      start_b: int32 [B], each row's first slot that holds a token.
      slot: int32 scalar, where the next token goes.
    """

    layers: dict[str, dict[str, LayerCache]]
    start_b: jax.Array
    slot: jax.Array
