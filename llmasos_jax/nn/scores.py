"""From products of queries and keys to what the softmax takes: cap, biases, mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.nn.mask import Visibility

# Finite: a row that sees nothing (padding) gives a number, not NaN, and its gradient is zero.
MASKED = -1e30


def masked_scores(
    scores: jax.Array,
    visible: Visibility,
    soft_cap: float | None,
    slopes: np.ndarray | None,
    bias: jax.Array | None,
    *,
    head_axis: int = 1,
) -> jax.Array:
    """Scaled scores [B, K, G, T, S], or [K, B, G, T, S] if `head_axis` is 0, as softmax takes them.

    `soft_cap`, `slopes` [K G] and `bias` [K G, T, S] or [B, K G, T, S] (then not with `head_axis`
    0) as in `kernels.dot_product`.
    """
    if soft_cap is not None:
        scores = jnp.tanh(scores / soft_cap) * soft_cap
    if slopes is not None:
        heads = [1] * 5
        heads[head_axis], heads[2] = scores.shape[head_axis], scores.shape[2]
        distance = jnp.expand_dims(jnp.abs(visible.distance()), (head_axis, 2))
        scores = scores - jnp.asarray(slopes).reshape(heads) * distance.astype(jnp.float32)
    if bias is not None and bias.ndim == 4:
        scores = scores + bias.reshape(bias.shape[0], *scores.shape[1:3], *bias.shape[2:])
    elif bias is not None:
        bias_kgts = bias.reshape(scores.shape[head_axis], scores.shape[2], *bias.shape[1:])
        scores = scores + jnp.expand_dims(bias_kgts, 1 - head_axis)
    return jnp.where(jnp.expand_dims(visible.mask(), (head_axis, 2)), scores, MASKED)
