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

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.errors import ConfigError
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
    kernels: KernelsConfig = KernelsConfig(),
    tag: str | None = None,
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
      kernels: sizes of blocks.
      tag: under which a remat policy may keep what the kernel gives its backward pass, so that it
        does not run again.
      interpret: run the kernel's steps as plain JAX, on any device, slowly.

    Returns:
      [B, T, N, H] in `q_btnh`'s dtype.

    Raises:
      ConfigError: a block that does not divide T.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, t, n, _ = q_btnh.shape
    mesh = mesh if manual is None else manual.mesh
    ways = 1 if mesh is None else mesh.shape["tensor"]
    segments = (visible.q_segments, visible.k_segments)
    if segments[0] is None or segments[1] is None:
        segments = (jnp.zeros((b, t), jnp.int32),) * 2

    def attend(q_bnth: jax.Array, k_bkth: jax.Array, v_bkth: jax.Array, ids: Any) -> Any:
        mask = _mask(t, visible.causal, visible.window)
        kernel = splash.make_splash_mha(
            masks.MultiHeadMask([mask] * (n // ways)),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=block_sizes(t, kernels),
            attn_logits_soft_cap=soft_cap,
            residual_checkpoint_name=tag,
            interpret=interpret,
        )
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


def block_sizes(t: int, kernels: KernelsConfig) -> Any:
    """The blocks of a sequence of `t` tokens: the config's, else the widest that divide it.

    Raises:
      ConfigError: a block of the config does not divide the sequence.

    Example:
      >>> block_sizes(768, KernelsConfig(block_q=384)).block_q
      384
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    widest = next(size for size in BLOCKS if t % size == 0)

    def size(name: str) -> int:
        block = getattr(kernels, name)
        if block is not None and t % block:
            fitting = [n for n in range(128, t + 1, 128) if t % n == 0]
            raise ConfigError(
                f"kernels.{name}={block} does not divide a sequence of {t} tokens; take one of "
                f"{', '.join(map(str, fitting))}, or None"
            )
        return widest if block is None else block

    block_q, block_kv = size("block_q"), size("block_kv")
    block_q_backward, block_kv_backward = size("block_q_backward"), size("block_kv_backward")
    return splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        # A wide block is fetched at once and scored in parts, whose scores have to fit on the chip.
        block_kv_compute=_part(block_kv),
        block_q_dkv=block_q_backward,
        block_kv_dkv=block_kv_backward,
        block_kv_dkv_compute=_part(block_kv_backward),
        block_q_dq=block_q_backward,
        block_kv_dq=block_kv_backward,
    )


def _part(block: int) -> int:
    return next(size for size in BLOCKS if block % size == 0)


@functools.cache
def _mask(t: int, causal: bool, window: int | None) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if window is not None:
        return masks.LocalMask((t, t), (window - 1, 0 if causal else window - 1), 0)
    return masks.CausalMask((t, t)) if causal else masks.FullMask((t, t))
