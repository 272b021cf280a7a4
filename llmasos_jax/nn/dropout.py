"""Dropout whose noise depends on key, layer and row of the global batch, never on the mesh."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dropout:
    """Zeroes a share of the numbers and scales the rest up (Srivastava et al., 2014).

    Attributes:
      key: typed PRNG key.
      rate: float32 scalar, the share that is zeroed, in steps of 2^-16.
      rows_b: int32 [B], each row's number in the global batch.
      first: place in the sequence of the first token that is here, where tokens are split over
        devices.
      ways: into how many parts they are.
    """

    key: jax.Array
    rate: jax.Array
    rows_b: jax.Array
    first: jax.Array | int = 0
    ways: int = field(metadata={"static": True}, default=1)

    def at(self, index: jax.Array | int) -> Dropout:
        """The dropout of one place in the model."""
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, index))

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Applies it to [B, T, D]."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.key, self.rows_b)
        zeroed = jnp.round(self.rate * 2**16).astype(jnp.uint32)
        t, *rest = x_btd.shape[1:]
        bits = jax.vmap(lambda key: _bits16(key, (t * self.ways, *rest)))(keys)
        if self.ways > 1:
            # The noise of the whole row, so that it is the same however the row is split.
            bits = lax.dynamic_slice_in_dim(bits, self.first, t, axis=1)
        kept = bits >= zeroed
        keep = 1.0 - zeroed.astype(jnp.float32) / 2**16
        return jnp.where(kept, x_btd / keep.astype(x_btd.dtype), jnp.zeros_like(x_btd))


def _bits16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random whole numbers below 2^16: two of each 32 random bits, which are costly on a CPU."""
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
    return jnp.concatenate([words >> 16, words & 0xFFFF])[:size].reshape(shape)
