"""Attention on NVIDIA GPUs by cuDNN's flash kernel, through `jax.nn.dot_product_attention`."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp

from llmasos_jax.nn.mask import Visibility

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def cudnn_refuses(
    q_shape: tuple[int, ...], v_shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> str | None:
    """Why the kernel cannot take arrays of these shapes here, or None: it can."""
    if dtype not in (jnp.float16, jnp.bfloat16):
        return f"it computes in bfloat16 and float16, not {jnp.dtype(dtype).name}"
    if q_shape[-1] != v_shape[-1]:
        return f"its values are as wide as its keys, not {v_shape[-1]} beside {q_shape[-1]}"
    if q_shape[-1] % 8 or q_shape[-1] > 128:
        return f"its heads are a multiple of 8 and at most 128 wide, not {q_shape[-1]}"
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        return "cuDNN is not installed; pip install 'jax[cuda13]'"
    return None


def cudnn_attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    implementation: str = "cudnn",
) -> jax.Array:
    """`kernels.dot_product` without soft cap, slopes or bias, for what `cudnn_refuses` lets pass.

    Documents, prefixes and branches go in as a mask [B, 1, T, S], the only array of that size.
    Whole sequences under causality and windows that look back need none.

    Args:
      q_btnh: queries [B, T, N, H].
      k_bskh: keys [B, S, K, H].
      v_bskh: values [B, S, K, H].
      visible: who sees whom; where T = S places count from 0.
      scale: multiplies the scores.
      implementation: "xla" runs the same call anywhere.

    Returns:
      [B, T, N, H] in `q_btnh`'s dtype.
    """
    is_square = q_btnh.shape[1] == k_bskh.shape[1]
    has_segments = visible.q_segments is not None and visible.k_segments is not None
    has_branches = visible.k_branches is not None
    by_rule = is_square and visible.causal and visible.k_prefix is None and not has_branches
    # The kernel knows causality, and windows under it; a rule lets it leave blocks out.
    has_rows_of_their_own = has_segments or has_branches
    has_rule = by_rule or not (visible.causal or visible.window is not None)
    needs_mask = has_rows_of_their_own or not has_rule
    window = None
    if by_rule and visible.window is not None:
        window = (visible.window - 1, 0)
    return jax.nn.dot_product_attention(  # pyright: ignore[reportCallIssue]
        q_btnh,
        k_bskh,
        v_bskh,
        mask=visible.mask()[:, None] if needs_mask else None,
        scale=scale,
        is_causal=by_rule,
        local_window_size=window,
        implementation=implementation,  # pyright: ignore[reportArgumentType]
    )
