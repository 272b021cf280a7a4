"""Dropout whose noise depends on key, layer and row of the global batch, never on the mesh."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dropout:
    """Zeroes a share of the numbers and scales the rest up (Srivastava et al., 2014).

    Attributes:
      key: typed PRNG key.
      rate: float32 scalar, the share that is zeroed.
      rows_b: int32 [B], each row's number in the global batch.
    """

    key: jax.Array
    rate: jax.Array
    rows_b: jax.Array

    def at(self, index: jax.Array | int) -> Dropout:
        """The dropout of one place in the model."""
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, index))

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Applies it to [B, T, D]."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.key, self.rows_b)
        keep = 1.0 - self.rate
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x_btd.shape[1:]))(keys)
        return jnp.where(kept, x_btd / keep.astype(x_btd.dtype), jnp.zeros_like(x_btd))
