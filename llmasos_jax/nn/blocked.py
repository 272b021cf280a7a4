"""Attention in blocks of queries, for CPUs: no [B, N, T, S] scores, and no work on what is masked.

The backward pass makes each block's scores again (Dao et al., 2022, arXiv 2205.14135); a block of
queries has the softmax over all its keys at once, which a CPU's memory bears.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.scores import MASKED, masked_scores

# Queries in a block: causal attention over 512 tokens then does 5/8 of all the work.
BLOCK = 128

Given = tuple[Visibility, Any]  # who sees whom, slopes: neither has a gradient
Arrays = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]  # queries, keys, values, bias


@dataclass(frozen=True, eq=False)
class _Settings:
    """What is known when the program is made."""

    scale: float
    soft_cap: float | None
    block: int
    dtype: Any  # of the factors of products

    def product(self, spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(self.dtype), b.astype(self.dtype)
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def blocked_attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskz: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
    block: int = BLOCK,
    dtype: Any = None,
) -> jax.Array:
    """`kernels.dot_product`, whose arguments these are; it has no forward-mode derivatives.

    Args:
      q_btnh: queries [B, T, N, H].
      k_bskh: keys [B, S, K, H].
      v_bskz: values [B, S, K, Z].
      visible: who sees whom; where T = S places count from 0.
      scale: multiplies the scores.
      soft_cap: c in c tanh(scores / c), after the scale.
      slopes: ALiBi's slope of each query head, float32 [N].
      bias: added to the scores, float32 [N, T, S] or [B, N, T, S].
      block: queries in a block.
      dtype: of the factors of products, which are summed in float32; None is `q_btnh`'s.

    Returns:
      [B, T, N, Z] in `q_btnh`'s dtype.
    """
    dtype = q_btnh.dtype if dtype is None else jnp.dtype(dtype)
    settings = _Settings(scale, soft_cap, block, dtype)
    (b, t, n, _), k = q_btnh.shape, k_bskh.shape[2]
    q_bkgth = q_btnh.reshape(b, t, k, n // k, -1).transpose(0, 2, 3, 1, 4)
    keys, values = k_bskh.swapaxes(1, 2), v_bskz.swapaxes(1, 2)
    out_bkgtz = _attend(settings, (visible, slopes), (q_bkgth, keys, values, bias))
    return out_bkgtz.transpose(0, 3, 1, 2, 4).reshape(b, t, n, -1).astype(q_btnh.dtype)


def key_range(visible: Visibility, first: int, last: int, num_queries: int, num_keys: int) -> slice:
    """The keys that queries `first` to `last` - 1 may see, known without looking at any array.

    Example:
      >>> index = jnp.arange(512)[None]
      >>> key_range(Visibility(index, index, None, None, window=100), 256, 384, 512, 512)
      slice(157, 384, None)
    """
    start, stop = 0, num_keys
    if num_queries == num_keys:
        if visible.causal and visible.k_prefix is None:
            stop = last
        # Of branches of one segment the places in the row say nothing about how far they are apart.
        if visible.window is not None and visible.k_branches is None:
            start = max(first - visible.window + 1, 0)
            stop = min(last + visible.window - 1, stop)
    return slice(start, stop)


def _attend(settings: _Settings, given: Given, arrays: Arrays) -> jax.Array:
    attend = jax.custom_vjp(partial(_forward, settings, is_kept=False))
    attend.defvjp(partial(_forward, settings, is_kept=True), partial(_backward, settings))
    return attend(given, arrays)


def _blocks(settings: _Settings, visible: Visibility, arrays: Arrays) -> Any:
    """For each block: its queries, its keys, who sees whom among them, and their bias."""
    q, k, _, bias = arrays
    t, s = q.shape[3], k.shape[2]
    for first in range(0, t, settings.block):
        rows = slice(first, min(first + settings.block, t))
        keys = key_range(visible, rows.start, rows.stop, t, s)
        yield rows, keys, _cut(visible, rows, keys), None if bias is None else bias[..., rows, keys]


def _after(x: jax.Array, *done: jax.Array) -> jax.Array:
    """`x`, which the compiler now takes to depend on what is done.

    XLA for CPU would make the products of all blocks first, and all scores would be there at once;
    an optimization barrier does not keep it from that, a zero that it cannot know does.
    """
    for part in done:
        first = lax.slice(part, (0,) * part.ndim, (1,) * part.ndim).reshape(())
        zero = jnp.where(jnp.isnan(first), 0.0, jnp.minimum(jnp.abs(first), 0.0))
        x = x + zero.astype(x.dtype)
    return x


def _cut(visible: Visibility, rows: slice, keys: slice) -> Visibility:
    cut = lambda x, part: None if x is None else x[:, part]
    return dataclasses.replace(
        visible,
        q_index=visible.q_index[:, rows],
        k_index=visible.k_index[:, keys],
        q_segments=cut(visible.q_segments, rows),
        k_segments=cut(visible.k_segments, keys),
        k_prefix=cut(visible.k_prefix, keys),
        q_branches=cut(visible.q_branches, rows),
        k_branches=cut(visible.k_branches, keys),
    )


def _scores(
    settings: _Settings, q: jax.Array, k: jax.Array, given: Given, bias: Any
) -> tuple[jax.Array, jax.Array]:
    """Of one block, [B, K, G, T, S]: the scaled products, and the scores that softmax takes."""
    b, h, g, t, _ = q.shape
    plain = settings.product("bkmh,bksh->bkms", q.reshape(b, h, g * t, -1), k) * settings.scale
    plain = plain.reshape(b, h, g, t, -1)
    return plain, masked_scores(plain, given[0], settings.soft_cap, given[1], bias)


def _forward(settings: _Settings, given: Given, arrays: Arrays, *, is_kept: bool) -> Any:
    visible, slopes = given
    q, k, v, _ = arrays
    b, h, g = q.shape[:3]
    outs, logs = [], []
    for rows, keys, sight, bias in _blocks(settings, visible, arrays):
        queries = _after(q[:, :, :, rows], *outs[-1:])
        _, scores = _scores(settings, queries, k[:, :, keys], (sight, slopes), bias)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        flat = weights.reshape(b, h, -1, weights.shape[-1])
        out = settings.product("bkms,bksz->bkmz", flat, v[:, :, keys])
        outs.append(out.reshape(b, h, g, -1, v.shape[-1]) / total)
        # Of a row that sees nothing the logarithm is rounded away in the sum: its weights come out
        # as ones in the backward pass, and its gradient is divided by their number instead.
        share = jnp.where(largest > MASKED, 1.0, 1.0 / total)
        logs.append((largest + jnp.log(total), share))
    out = jnp.concatenate(outs, axis=3)
    if not is_kept:
        return out
    return out, (given, arrays, out, [jnp.concatenate(x, axis=3) for x in zip(*logs, strict=True)])


def _backward(settings: _Settings, kept: Any, grad: jax.Array) -> tuple[None, Arrays]:
    (visible, slopes), arrays, out, (logs, shares) = kept
    q, k, v, bias = arrays
    b, h, g, t, _ = q.shape
    inner = jnp.sum(grad * out, axis=-1, keepdims=True)
    grad_q, grad_k, grad_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    grad_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    merge = lambda x: x.reshape(b, h, -1, x.shape[-1])
    done: list[jax.Array] = []
    for rows, keys, sight, cut_bias in _blocks(settings, visible, arrays):
        queries = _after(q[:, :, :, rows], *done)
        plain, scores = _scores(settings, queries, k[:, :, keys], (sight, slopes), cut_bias)
        weights = jnp.exp(scores - logs[:, :, :, rows])
        above = merge(_after(grad[:, :, :, rows] * shares[:, :, :, rows], *done))
        grad_weights = settings.product("bkmz,bksz->bkms", above, v[:, :, keys])
        grad_scores = weights * (grad_weights.reshape(weights.shape) - inner[:, :, :, rows])
        # A row that sees nothing has even weights, and no gradient.
        grad_scores = jnp.where(sight.mask()[:, None, None], grad_scores, 0.0)
        if grad_bias is not None:
            summed = grad_scores if grad_bias.ndim == 4 else jnp.sum(grad_scores, axis=0)
            summed = summed.reshape(grad_bias[..., rows, keys].shape)
            grad_bias = grad_bias.at[..., rows, keys].add(summed)
        if settings.soft_cap is not None:
            grad_scores *= 1.0 - jnp.square(jnp.tanh(plain / settings.soft_cap))
        flat, weights = merge(grad_scores * settings.scale), merge(weights)
        done = [
            settings.product("bkms,bksh->bkmh", flat, k[:, :, keys]),
            settings.product("bkms,bkmh->bksh", flat, merge(queries)),
            settings.product("bkms,bkmz->bksz", weights, above),
        ]
        grad_q.append(done[0].reshape(queries.shape))
        grad_k = grad_k.at[:, :, keys].add(done[1])
        grad_v = grad_v.at[:, :, keys].add(done[2])
    whole_q = jnp.concatenate(grad_q, axis=3).astype(q.dtype)
    return None, (whole_q, grad_k.astype(k.dtype), grad_v.astype(v.dtype), grad_bias)
