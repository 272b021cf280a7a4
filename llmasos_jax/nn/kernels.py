"""Which attention kernel runs where.

The kernel follows the platform of the mesh's devices, never `jax.default_backend()`: a TPU program
may be compiled on a host that has none.
"""

from __future__ import annotations

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime

# Finite: a row that sees nothing (padding) gives a number, not NaN, and its gradient is zero.
MASKED = -1e30
SPLASH_BLOCK = 128


def dot_product(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    runtime: Runtime,
) -> jax.Array:
    """Gives softmax(q k^T * scale + bias) v over what is visible.

    Equation 1 of Vaswani et al., 2017, arXiv 1706.03762, with what came later.

    Args:
      q_btnh: queries [B, T, N, H].
      k_bskh: keys [B, S, K, H], K a divisor of N; query head n reads key head n // (N / K).
      v_bskh: values [B, S, K, H].
      visible: who sees whom.
      scale: multiplies the scores.
      soft_cap: c in c tanh(scores / c), after the scale.
      slopes: ALiBi's slope of each query head, float32 [N]; None for no bias.
      runtime: chooses the kernel: on TPU the splash kernel where it has all that is asked for.

    Returns:
      [B, T, N, H] in `q_btnh`'s dtype; the softmax is float32.
    """
    if runtime.platform == "tpu" and splash_fits(q_btnh.shape, k_bskh.shape, slopes):
        return _splash(
            q_btnh, k_bskh, v_bskh, visible, scale=scale, soft_cap=soft_cap, runtime=runtime
        )
    return reference(q_btnh, k_bskh, v_bskh, visible, scale=scale, soft_cap=soft_cap, slopes=slopes)


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
) -> jax.Array:
    """`dot_product` written out with plain products: runs anywhere, holds [B, N, T, S] scores."""
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
    scores = (
        jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32) * scale
    )
    weights = _weights(scores, visible, soft_cap, slopes, head_axis=1).astype(v_bskh.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v_bskh, preferred_element_type=jnp.float32)
    return out.reshape(b, t, n, h).astype(q_btnh.dtype)


def cached(
    q_btnh: jax.Array,
    cache: LayerCache,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
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
    weights = _weights(scores_kbgts, visible, soft_cap, slopes, head_axis=0)
    out_rmh = product("rms,rsh->rmh", weights.reshape(r, g * t, s).astype(values.dtype), values)
    out_btkgh = out_rmh.reshape(k, b, g, t, h).transpose(1, 3, 0, 2, 4)
    return out_btkgh.reshape(b, t, n, h).astype(q_btnh.dtype)


def _weights(
    scores: jax.Array,
    visible: Visibility,
    soft_cap: float | None,
    slopes: np.ndarray | None,
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
    scores = jnp.where(jnp.expand_dims(visible.mask(), (head_axis, 2)), scores, MASKED)
    return jax.nn.softmax(scores, axis=-1)


def splash_fits(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], slopes: np.ndarray | None
) -> bool:
    """Whether the TPU splash kernel can do it: whole blocks, as many keys as queries, no ALiBi."""
    return slopes is None and q_shape[1] == k_shape[1] and q_shape[1] % SPLASH_BLOCK == 0


def _splash(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None,
    runtime: Runtime,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    t, n = q_btnh.shape[1:3]
    ways = 1 if runtime.manual is None else runtime.manual.mesh.shape["tensor"]
    segments = visible.q_segments
    if segments is None:
        segments = jnp.zeros((q_btnh.shape[0], t), jnp.int32)

    def attend(
        q_bnth: jax.Array, k_bkth: jax.Array, v_bkth: jax.Array, segments_bt: jax.Array
    ) -> jax.Array:
        kernel = _splash_kernel(n // ways, t, visible.causal, visible.window, soft_cap)
        ids = splash.SegmentIds(segments_bt, segments_bt)
        return jax.vmap(kernel)(q_bnth, k_bkth, v_bkth, ids)  # pyright: ignore[reportReturnType]

    if runtime.manual is not None:
        # The compiler cannot partition Pallas kernels: every mesh axis is manual around them.
        heads = PartitionSpec(None, "tensor")
        attend = jax.shard_map(
            attend,
            in_specs=(heads, heads, heads, PartitionSpec()),
            out_specs=heads,
            axis_names={"tensor"},
            check_vma=False,
        )
    q, k, v = (
        x.swapaxes(1, 2) for x in (q_btnh * jnp.asarray(scale, q_btnh.dtype), k_bskh, v_bskh)
    )
    return attend(q, k, v, segments).swapaxes(1, 2)


@functools.cache
def _splash_mask(t: int, causal: bool, window: int | None):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if window is not None:
        return masks.LocalMask((t, t), (window - 1, 0 if causal else window - 1), 0)
    return masks.CausalMask((t, t)) if causal else masks.FullMask((t, t))


def _splash_kernel(
    num_heads: int, t: int, causal: bool, window: int | None, soft_cap: float | None
):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in (512, 256, SPLASH_BLOCK) if t % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([_splash_mask(t, causal, window)] * num_heads)
    return splash.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, attn_logits_soft_cap=soft_cap
    )
