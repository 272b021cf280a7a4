"""Attention on TPU by JAX's splash kernel: blocks of scores that never leave the chip's memory.

Flash attention (Dao et al., 2022, arXiv 2205.14135) that also skips blocks which the mask empties.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from llmasos_jax.nn.mask import Visibility
from llmasos_jax.parallel.manual import Manual

# Widest first: a block has to divide the sequence, and a TPU's vector has 128 lanes.
BLOCKS = (512, 256, 128)


def splash_fits(
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    slopes: np.ndarray | None,
    bias: jax.Array | None = None,
    prefix: jax.Array | None = None,
) -> bool:
    """Whether the kernel can do it: whole blocks, as many keys as queries, no bias, no prefix."""
    is_plain = slopes is None and bias is None and prefix is None
    return is_plain and q_shape[1] == k_shape[1] and q_shape[1] % BLOCKS[-1] == 0


def splash_attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    manual: Manual | None = None,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`kernels.dot_product` for the shapes that `splash_fits` takes, with S = T and no cache.

    Args:
      q_btnh: queries [B, T, N, H].
      k_bskh: keys [B, T, K, H].
      v_bskh: values [B, T, K, H]; their H may be another one, which is then the result's.
      visible: who sees whom; places count from 0.
      scale: multiplies the scores.
      soft_cap: c in c tanh(scores / c), after the scale.
      manual: the sharding around it; heads are split over `tensor`.
      mesh: the devices where there is no such sharding, only arrays that live on several.
      interpret: run the kernel's steps as plain JAX, on any device, slowly.

    Returns:
      [B, T, N, H] in `q_btnh`'s dtype.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    b, t, n, _ = q_btnh.shape
    mesh = mesh if manual is None else manual.mesh
    ways = 1 if mesh is None else mesh.shape["tensor"]
    segments = (visible.q_segments, visible.k_segments)
    if segments[0] is None or segments[1] is None:
        segments = (jnp.zeros((b, t), jnp.int32),) * 2

    def attend(q_bnth: jax.Array, k_bkth: jax.Array, v_bkth: jax.Array, ids: Any) -> jax.Array:
        kernel = _kernel(n // ways, t, visible.causal, visible.window, soft_cap, interpret)
        return jax.vmap(kernel)(q_bnth, k_bkth, v_bkth, splash.SegmentIds(*ids))

    if mesh is not None:
        # Pallas kernels cannot be partitioned by the compiler: every axis is manual around them.
        heads = PartitionSpec(None, "tensor")
        attend = jax.shard_map(
            attend,
            mesh=mesh if manual is None else None,  # inside another one, it is that one's
            in_specs=(heads, heads, heads, (PartitionSpec(), PartitionSpec())),
            out_specs=heads,
            axis_names=set(mesh.axis_names) if manual is None else {"tensor"},
            check_vma=False,
        )
    # The kernel does not scale; the scale itself must not be rounded to the queries' type.
    scaled = (q_btnh.astype(jnp.float32) * scale).astype(q_btnh.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (scaled, k_bskh, v_bskh))
    return attend(q, k, v, segments).swapaxes(1, 2)


def _kernel(
    num_heads: int,
    t: int,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    interpret: bool,
) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in BLOCKS if t % size == 0)
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
    mask = masks.MultiHeadMask([_mask(t, causal, window)] * num_heads)
    return splash.make_splash_mha(
        mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )


@functools.cache
def _mask(t: int, causal: bool, window: int | None) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if window is not None:
        return masks.LocalMask((t, t), (window - 1, 0 if causal else window - 1), 0)
    return masks.CausalMask((t, t)) if causal else masks.FullMask((t, t))
