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
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer (with a leading axis more where layers are stacked).

    They lie as the two products of attention read them, so that a step of decoding streams the
    cache once. One axis R = K B holds heads and rows: with an axis of its own for a batch of 1,
    XLA on CPU copies the whole cache at every step. Heads come first, so that they can be sharded.

    Attributes:
      k_rhs: keys [R, H, S].
      v_rsh: values [R, S, H]; their H may be another than the keys' (latent attention).
    """

    k_rhs: jax.Array
    v_rsh: jax.Array

    @property
    def num_slots(self) -> int:
        """S."""
        return self.k_rhs.shape[-1]

    @classmethod
    def of(cls, k_bskh: jax.Array, v_bskh: jax.Array, dtype: Any) -> LayerCache:
        """A cache full of these keys and values, [B, S, K, H]."""
        b, s, k, _ = k_bskh.shape
        k_rhs = k_bskh.transpose(2, 0, 3, 1).reshape(k * b, -1, s)
        v_rsh = v_bskh.transpose(2, 0, 1, 3).reshape(k * b, s, -1)
        return cls(k_rhs.astype(dtype), v_rsh.astype(dtype))

    def write(self, k_btkh: jax.Array, v_btkh: jax.Array, slot: jax.Array) -> LayerCache:
        """Writes T tokens from `slot` on."""
        zero, new = jnp.zeros_like(slot), self.of(k_btkh, v_btkh, self.k_rhs.dtype)
        return LayerCache(
            lax.dynamic_update_slice(self.k_rhs, new.k_rhs, (zero, zero, slot)),
            lax.dynamic_update_slice(self.v_rsh, new.v_rsh, (zero, slot, zero)),
        )

    def views(self, batch_size: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values as attention functions take them, [B, S, K, H]."""
        k_kbhs = self.k_rhs.reshape(-1, batch_size, *self.k_rhs.shape[1:])
        v_kbsh = self.v_rsh.reshape(-1, batch_size, *self.v_rsh.shape[1:])
        return k_kbhs.transpose(1, 3, 0, 2), v_kbsh.transpose(1, 2, 0, 3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossCache:
    """What a decoder keeps of the encoder's states: written once, then only read.

    Attributes:
      layers: a tree like the decoder's layers of LayerCache, S slots of the encoder's tokens.
      segment_ids_bs: int32 [B, S], 1 for tokens of the row's text; 0 is padding, which is unseen.
    """

    layers: dict[str, dict[str, LayerCache]]
    segment_ids_bs: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The cache of a model.

    Attributes:
      layers: a tree like the model's layers (`prefix`, `periods`, `suffix`) of LayerCache.
      start_b: int32 [B], each row's first slot that holds a token.
      slot: int32 scalar, where the next token goes.
      length_b: int32 [B], tokens that each row is known to have, the prompt's: where angles depend
        on a sequence's length ("longrope"), the first piece of a long prompt must know it; where
        a prompt is seen in both directions, what follows these tokens is not of it (0: unknown).
      cross: what cross-attention reads; None in a model without an encoder.
    """

    layers: dict[str, dict[str, LayerCache]]
    start_b: jax.Array
    slot: jax.Array
    length_b: jax.Array
    cross: CrossCache | None = None

    @property
    def num_slots(self) -> int:
        """S, the same in every layer."""
        return next(iter(next(iter(self.layers.values())).values())).num_slots
