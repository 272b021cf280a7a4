"""Products of weights and activations rounded to eight bits, forward and backward.

Each row of a factor (what one sum of the product runs over) has a scale, so that its largest number
becomes the largest code; the sums of codes are multiplied by both scales::

    y[b,t,f] = sx[b,t] sw[f] sum_d cx[b,t,d] cw[d,f]     cx = round(x / sx), sx = max_d |x| / 127

The backward pass rounds the same way, along what its own two products sum over: the gradient of the
activations sums over f, that of the weights over b and t. Everything kept for it is in the dtype
that the product had without rounding.

| | forward | gradient | sums |
|---|---|---|---|
| "int8" | int8, to the nearest | int8; for the weights' gradient at random, unbiased | int32 |
| "fp8" | float8_e4m3fn | float8_e5m2 times float8_e4m3fn | float32 |

A CPU has no such products: there the codes are bfloat16, which holds each of them exactly, and sums
are float32, exact for int8 up to 2^24 (rows of 1040 numbers, all of them the largest; sums beyond
are rounded at 2^-24 of them).

References:
  Dettmers et al., 2022, arXiv 2208.07339 (a scale for each row and column); Micikevicius et al.,
  2022, arXiv 2209.05433 (the two fp8 formats); Wortsman et al., 2023, arXiv 2304.13013.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.nn.noise import uniform


@dataclass(frozen=True)
class Rounding:
    """How the factors of a product are rounded.

    Attributes:
      kind: "int8" or "fp8".
      is_native: whether the devices multiply such codes; else they are carried in bfloat16.
    """

    kind: str
    is_native: bool = True

    @property
    def forward(self) -> Any:
        """The codes of activations and weights."""
        return jnp.dtype(jnp.int8 if self.kind == "int8" else jnp.float8_e4m3fn)

    @property
    def gradient(self) -> Any:
        """The codes of what comes back: e5m2 has the range for it, e4m3 the precision."""
        return jnp.dtype(jnp.int8 if self.kind == "int8" else jnp.float8_e5m2)

    @property
    def sum(self) -> Any:
        """What codes are added up in."""
        return jnp.dtype(jnp.int32 if self.kind == "int8" and self.is_native else jnp.float32)


def dot_rounded(
    rounding: Rounding, spec: str, x: jax.Array, w: jax.Array, *, out_dtype: Any
) -> jax.Array:
    """The product of activations and a weight, both rounded to eight bits.

    Args:
      rounding: how.
      spec: an einsum of two factors, with no letter in both of them and in the result too.
      x: activations.
      w: the weight, in the dtype that factors are kept in for the backward pass.
      out_dtype: of the result.

    Example:
      >>> x, w = jnp.array([[1.0, -3.0]]), jnp.array([[1.0], [2.0]])
      >>> y = dot_rounded(Rounding("int8"), "td,df->tf", x, w, out_dtype=jnp.float32)
      >>> print(f"{y[0, 0]:.3f}")  # (42 * 64 - 127 * 127) * 3 / 127 * 2 / 127
      -5.000
    """
    return _dot(rounding, spec, jnp.dtype(out_dtype), x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dot(rounding: Rounding, spec: str, out_dtype: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    return _forward(rounding, spec, out_dtype, x, w)[0]


def _forward(
    rounding: Rounding, spec: str, out_dtype: Any, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, Any]:
    narrow = x.astype(w.dtype)
    codes = (rounding.forward, rounding.forward)
    y = _product(rounding, spec, (narrow, w), codes, is_random=False)
    like_x = jnp.zeros((0,), x.dtype)  # its dtype is all that the backward pass needs of it
    return y.astype(out_dtype), (narrow, w, like_x)


def _backward(
    rounding: Rounding, spec: str, out_dtype: Any, kept: Any, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del out_dtype
    narrow, w, like_x = kept
    inputs, _, output = spec.partition("->")
    x_axes, _, w_axes = inputs.partition(",")
    product = partial(
        _product, rounding, codes=(rounding.gradient, rounding.forward), is_random=False
    )
    grad_x = product(f"{output},{w_axes}->{x_axes}", (grad, w))
    # Most gradients of single tokens are below half a code: to the nearest they would all be lost.
    grad_w = product(
        f"{output},{x_axes}->{w_axes}", (grad, narrow), is_random=rounding.kind == "int8"
    )
    return grad_x.astype(like_x.dtype), grad_w.astype(w.dtype)


_dot.defvjp(_forward, _backward)


def _product(
    rounding: Rounding,
    spec: str,
    factors: tuple[jax.Array, jax.Array],
    codes: tuple[Any, Any],
    *,
    is_random: bool,
) -> jax.Array:
    """The float32 product of two factors, each rounded to codes; the first perhaps at random."""
    inputs, _, output = spec.partition("->")
    coded, scales = [], []
    for index, (factor, axes, code) in enumerate(
        zip(factors, inputs.split(","), codes, strict=True)
    ):
        summed = tuple(dim for dim, axis in enumerate(axes) if axis not in output)
        values, scale = encode(factor, summed, code, is_random=is_random and index == 0)
        coded.append(values if rounding.is_native else values.astype(jnp.bfloat16))
        scales.append(_along(lax.squeeze(scale, summed), axes, output))
    y = jnp.einsum(spec, *coded, preferred_element_type=rounding.sum)
    return y.astype(jnp.float32) * scales[0] * scales[1]


def encode(
    x: jax.Array, axes: tuple[int, ...], dtype: Any, *, is_random: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Rounds numbers to codes, with a scale for all that lie along `axes`.

    Args:
      x: any shape.
      axes: dimensions that share a scale.
      dtype: of the codes: int8, or a float8.
      is_random: int8 only: up or down at random, so that the mean is right. The choice follows from
        the numbers and their places, not from a key: the same input gives the same codes.

    Returns:
      Codes in the shape of `x`, and float32 scales with 1 for each of `axes`: x ~ codes * scales.

    Example:
      >>> codes, scale = encode(jnp.array([[0.5, -2.0]]), (1,), jnp.int8)
      >>> codes.tolist(), round(float(scale[0, 0] * 127), 6)
      ([[32, -127]], 2.0)
    """
    x = x.astype(jnp.float32)
    is_int = jnp.issubdtype(dtype, jnp.integer)
    limit = float(jnp.iinfo(dtype).max if is_int else jnp.finfo(dtype).max)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / limit, 1.0)
    scaled = x / scale
    if is_int:
        scaled = jnp.floor(scaled + uniform(x)) if is_random else jnp.round(scaled)
    return jnp.clip(scaled, -limit, limit).astype(dtype), scale


def _along(scale: jax.Array, axes: str, output: str) -> jax.Array:
    """Scales of a factor, dimensions as the kept letters of `axes`, laid along the result's."""
    kept = [axis for axis in axes if axis in output]
    ordered = sorted(kept, key=output.index)
    scale = lax.transpose(scale, [kept.index(axis) for axis in ordered])
    shape = [scale.shape[ordered.index(axis)] if axis in ordered else 1 for axis in output]
    return scale.reshape(shape)
