"""What changes logits before the temperature: a mask, biases, penalties of what stands in the text.

Pure functions over a batch. A row whose numbers say "nothing" keeps its bits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mask_logits(logits_bv: jax.Array, allowed_bw: jax.Array) -> jax.Array:
    """Puts -inf wherever a token's bit is 0; bit i of word w is token 32 w + i."""
    b, v = logits_bv.shape
    bit_bwi = (allowed_bw[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]) & 1
    return jnp.where(bit_bwi.reshape(b, -1)[:, :v] == 1, logits_bv, -jnp.inf)


def add_bias(logits_bv: jax.Array, ids_bm: jax.Array, bias_bm: jax.Array) -> jax.Array:
    """Adds biases to the logits of tokens; ids outside the vocabulary are passed over."""
    row_b1 = jnp.arange(ids_bm.shape[0], dtype=jnp.int32)[:, None]
    return logits_bv.at[row_b1, ids_bm].add(bias_bm, mode="drop")


def penalise_seen(logits_bv: jax.Array, seen_bv: jax.Array, penalty_b: jax.Array) -> jax.Array:
    """Divides positive and multiplies negative logits of seen tokens by the penalty."""
    penalty = penalty_b[:, None]
    return jnp.where(
        seen_bv, jnp.where(logits_bv > 0, logits_bv / penalty, logits_bv * penalty), logits_bv
    )


def penalise_counts(
    logits_bv: jax.Array, count_bv: jax.Array, presence_b: jax.Array, frequency_b: jax.Array
) -> jax.Array:
    """Subtracts the presence penalty once, the frequency penalty as often as a token was drawn."""
    once_bv = jnp.where(count_bv > 0, presence_b[:, None], 0.0)
    return logits_bv - once_bv - count_bv.astype(jnp.float32) * frequency_b[:, None]
