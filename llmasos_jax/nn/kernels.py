"""Which attention kernel runs where.

The kernel follows the platform of the mesh's devices, never `jax.default_backend()`: a TPU program
may be compiled on a host that has none.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.splash import splash_attention, splash_fits

# Finite: a row that sees nothing (padding) gives a number, not NaN, and its gradient is zero.
MASKED = -1e30


def dot_product(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
    runtime: Runtime,
) -> jax.Array:
    """Gives softmax(q k^T * scale + bias) v over what is visible.

    Equation 1 of Vaswani et al., 2017, arXiv 1706.03762, with what came later.

    Args:
      q_btnh: queries [B, T, N, H].
      k_bskh: keys [B, S, K, H], K a divisor of N; query head n reads key head n // (N / K).
      v_bskh: values [B, S, K, H]; their H may be another one, which is then the result's.
      visible: who sees whom.
      scale: multiplies the scores.
      soft_cap: c in c tanh(scores / c), after the scale.
      slopes: ALiBi's slope of each query head, float32 [N]; None for no such bias.
      bias: added to the scores (after the cap), float32 [N, T, S]; None for none. A function of
        your own gets it only from models with relative positions.
      runtime: chooses the kernel: on TPU the splash kernel where it has all that is asked for.

    Returns:
      [B, T, N, H] in `q_btnh`'s dtype; the softmax is float32.
    """
    fits = partial(splash_fits, q_btnh.shape, k_bskh.shape)
    if runtime.platform == "tpu" and fits(slopes, bias, visible.k_prefix):
        return splash_attention(
            q_btnh,
            k_bskh,
            v_bskh,
            visible,
            scale=scale,
            soft_cap=soft_cap,
            manual=runtime.manual,
            mesh=runtime.mesh,
        )
    options = {"scale": scale, "soft_cap": soft_cap, "slopes": slopes, "bias": bias}
    return reference(q_btnh, k_bskh, v_bskh, visible, **options)


ATTENTIONS = {"dot_product": dot_product}


def reference(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`dot_product` written out with plain products: runs anywhere, holds [B, N, T, S] scores."""
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
    scores = (
        jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32) * scale
    )
    weights = _weights(scores, visible, soft_cap, slopes, bias, head_axis=1).astype(v_bskh.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v_bskh, preferred_element_type=jnp.float32)
    return out.reshape(b, t, n, -1).astype(q_btnh.dtype)


def cached(
    q_btnh: jax.Array,
    cache: LayerCache,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`dot_product` over all slots of a cache, in the cache's own layout."""
    b, t, n, h = q_btnh.shape
    r, _, s = cache.k_rhs.shape
    k = r // b
    g = n // k
    q_rmh = q_btnh.reshape(b, t, k, g, h).transpose(2, 0, 3, 1, 4).reshape(r, g * t, h)
    keys, values = cache.k_rhs.astype(q_rmh.dtype), cache.v_rsh.astype(q_rmh.dtype)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores_rms = product("rmh,rhs->rms", q_rmh, keys) * scale
    scores_kbgts = scores_rms.reshape(k, b, g, t, s)
    weights = _weights(scores_kbgts, visible, soft_cap, slopes, bias, head_axis=0)
    out_rmh = product("rms,rsh->rmh", weights.reshape(r, g * t, s).astype(values.dtype), values)
    out_btkgh = out_rmh.reshape(k, b, g, t, -1).transpose(1, 3, 0, 2, 4)
    return out_btkgh.reshape(b, t, n, -1).astype(q_btnh.dtype)


def _weights(
    scores: jax.Array,
    visible: Visibility,
    soft_cap: float | None,
    slopes: np.ndarray | None,
    bias: jax.Array | None,
    *,
    head_axis: int,
) -> jax.Array:
    """Scores [B, K, G, T, S], or [K, B, G, T, S] if `head_axis` is 0, to weights, float32."""
    if soft_cap is not None:
        scores = jnp.tanh(scores / soft_cap) * soft_cap
    if slopes is not None:
        heads = [1] * 5
        heads[head_axis], heads[2] = scores.shape[head_axis], scores.shape[2]
        distance = jnp.expand_dims(jnp.abs(visible.distance()), (head_axis, 2))
        scores = scores - jnp.asarray(slopes).reshape(heads) * distance.astype(jnp.float32)
    if bias is not None:
        bias_kgts = bias.reshape(scores.shape[head_axis], scores.shape[2], *bias.shape[1:])
        scores = scores + jnp.expand_dims(bias_kgts, 1 - head_axis)
    scores = jnp.where(jnp.expand_dims(visible.mask(), (head_axis, 2)), scores, MASKED)
    return jax.nn.softmax(scores, axis=-1)
