"""Products with weights that are kept in eight or four bits, on a CPU.

A CPU multiplies eight-bit codes by eight-bit codes several times as fast as it turns codes into
numbers. So where a matrix has one scale for each output and rows are few, as in decoding, each row
of activations is two rows of codes, the second of what the first leaves; the sums are exact:

    x = s (high + low / 254),  s = max |x| / 127,  y = (high . codes + low . codes / 254) s scales

which is `x` to 1/64,000 of its largest number. Elsewhere the codes are widened first: many rows
share the work, and inputs with scales of their own (four bits) leave no other way.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

STEPS = 127
BETWEEN = 254  # steps of the low codes in one of the high ones
MOST_ROWS = 128  # above it widened codes are as fast


def dot_codes(
    spec: str, x: jax.Array, codes: jax.Array, scales: jax.Array, *, out_dtype: Any
) -> jax.Array:
    """The product of activations and a weight in codes, its output axes first.

    Args:
      spec: of the einsum of `x` and the weight as it is in files, input axes first.
      x: activations [.., in..].
      codes: int8 or int4 [out.., in..].
      scales: float32 [groups, out..]; a group is a run of inputs that share a scale.
      out_dtype: of the result.

    Example:
      >>> x, codes = jnp.array([[2.0, -1.0]]), jnp.array([[3, 5]], jnp.int8)
      >>> dot_codes("bi,io->bo", x, codes, jnp.array([[0.5]]), out_dtype=jnp.float32).tolist()
      [[0.5]]
    """
    inputs, _, output = spec.partition("->")
    _, _, w_axes = inputs.partition(",")
    num_in = sum(axis not in output for axis in w_axes)
    lead, inner = x.shape[: x.ndim - num_in], math.prod(x.shape[x.ndim - num_in :])
    out_shape = codes.shape[: codes.ndim - num_in]
    rows = x.reshape(-1, inner).astype(jnp.float32)
    matrix, scales_go = codes.reshape(-1, inner), scales.reshape(scales.shape[0], -1)
    if scales.shape[0] == 1 and codes.dtype == jnp.int8 and len(rows) <= MOST_ROWS:
        y = _dot_int8(rows, matrix) * scales_go
    else:
        y = _dot_widened(rows, matrix, scales_go)
    return y.astype(out_dtype).reshape(*lead, *out_shape)


def _dot_int8(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    num = len(rows)
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    step = jnp.where(largest > 0, largest / STEPS, 1.0)
    parts = rows / step
    high = jnp.round(parts)
    low = jnp.round((parts - high) * BETWEEN)
    sums = lax.dot_general(
        jnp.concatenate([high, low]).astype(jnp.int8),
        matrix,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    ).astype(jnp.float32)
    return (sums[:num] + sums[num:] / BETWEEN) * step


def _dot_widened(rows: jax.Array, matrix: jax.Array, scales_go: jax.Array) -> jax.Array:
    groups, out = scales_go.shape
    parts = matrix.astype(jnp.float32).reshape(out, groups, -1) * scales_go.T[:, :, None]
    return lax.dot_general(
        rows,
        parts.reshape(out, -1),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
