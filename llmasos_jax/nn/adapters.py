"""A product's weight with a low-rank change beside it, or kept in few bits."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight

LORA, SCALES = "_lora", "_scales"  # what is behind a weight's name: its change, its codes' scales
_RANK = "R"  # in a product's spec


class Lora(nnx.Module):
    """x W + scale (x A) B (Hu et al., 2021, arXiv 2106.09685).

    With a magnitude m (Liu et al., 2024, arXiv 2402.09353, eq. 5) each column of the sum
    W + scale A B is brought to length m; the length that it has is a constant to the gradient.
    Where nothing moves any more (`is_fixed`), m divided by that length is the weight itself.
    """

    def __init__(
        self,
        param: Any,
        rank: int,
        scale: float,
        *,
        has_magnitude: bool,
        is_fixed: bool,
        stack: int | None,
    ) -> None:
        shape, num_in = param.shape if stack is None else param.shape[1:], param.num_in
        into, out_of = shape[:num_in], shape[num_in:]
        into_axes, out_axes = param.axes[:num_in], param.axes[num_in:]
        self.scale = scale
        self.num_in = num_in
        self.a = weight(
            (*into, rank), (*into_axes, None), init="fan_in", num_in=num_in, stack=stack
        )
        self.b = weight((rank, *out_of), (None, *out_axes), init="zeros", num_in=1, stack=stack)
        magnitude = weight(out_of, out_axes, init="ones", stack=stack) if has_magnitude else None
        self.magnitude, self.ratio = (None, magnitude) if is_fixed else (magnitude, None)

    def __call__(
        self, y: jax.Array, spec: str, x: jax.Array, w: Any, runtime: Runtime
    ) -> jax.Array:
        """`y` is x W; `spec` its einsum; `w` gives W, where lengths need it."""
        inputs, _, output = spec.partition("->")
        x_axes, _, w_axes = inputs.partition(",")
        lead = "".join(axis for axis in x_axes if axis not in w_axes)
        into, out_of = w_axes[: self.num_in], w_axes[self.num_in :]
        low = runtime.dot(f"{x_axes},{into}{_RANK}->{lead}{_RANK}", x, self.a[...])
        change = runtime.dot(f"{lead}{_RANK},{_RANK}{out_of}->{output}", low, self.b[...])
        y = y + jnp.asarray(self.scale, y.dtype) * change
        if self.ratio is not None:
            return _times(y, self.ratio[...])
        if self.magnitude is None:
            return y
        length = column_lengths(w(), self.a[...], self.b[...], self.scale, self.num_in)
        return _times(y, self.magnitude[...] / jax.lax.stop_gradient(length))


def _times(y: jax.Array, ratio: jax.Array) -> jax.Array:
    """`y` [.., out..] times one number for each column, [out..]."""
    return y * jnp.expand_dims(ratio, range(y.ndim - ratio.ndim)).astype(y.dtype)


def product(module: nnx.Module, name: str, spec: str, x: jax.Array, runtime: Runtime) -> jax.Array:
    """`x` times a weight of a module, with what stands beside the weight.

    Args:
      module: its attribute `name` is the weight; `name` + "_lora" its change, `name` + "_scales"
        what its codes are multiplied by, where there are such.
      name: of the weight.
      spec: of the einsum of `x` and the weight.
      x: activations.
      runtime: how to run.
    """
    param = getattr(module, name)
    scales, lora = getattr(module, name + SCALES, None), getattr(module, name + LORA, None)
    if scales is None:
        y = runtime.dot(spec, x, param[...])
    else:
        # Without this the backward pass would keep the weight at its full size.
        widen = jax.checkpoint(
            lambda x, w, s: runtime.dot(spec, x, dequantized(w, s, param.num_in))
        )
        y = widen(x, param[...], scales[...])
    if lora is None:
        return y
    whole = lambda: (
        param[...] if scales is None else dequantized(param[...], scales[...], param.num_in)
    )
    return lora(y, spec, x, whole, runtime)


def column_lengths(
    w: jax.Array, a: jax.Array, b: jax.Array, scale: float, num_in: int
) -> jax.Array:
    """The lengths of the columns of W + scale A B, float32, of one layer's weight."""
    change = scale * jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), axes=1)
    return lengths_of_columns(w.astype(jnp.float32) + change, num_in)


def lengths_of_columns(w: jax.Array, num_in: int) -> jax.Array:
    """The lengths of a weight's columns [out..], float32, over its first `num_in` dimensions."""
    return jnp.sqrt(jnp.sum(jnp.square(w.astype(jnp.float32)), axis=tuple(range(num_in))))


def group_size(num_in: int, bits: int) -> int:
    """How many inputs share a scale: all, or with four bits 64 of them where they divide so."""
    return 64 if bits == 4 and num_in % 64 == 0 else num_in


def dequantized(codes: jax.Array, scales: jax.Array, num_in: int) -> jax.Array:
    """A weight from its codes [in.., out..] and scales [groups, out..], float32.

    Example:
      >>> codes, scales = jnp.array([[2], [4]], jnp.int8), jnp.array([[0.5]])
      >>> dequantized(codes, scales, 1).tolist()
      [[1.0], [2.0]]
    """
    into, out_of = codes.shape[:num_in], codes.shape[num_in:]
    groups = codes.astype(jnp.float32).reshape(scales.shape[0], -1, *out_of)
    return (groups * scales[:, None]).reshape(*into, *out_of)


def scales_shape(shape: tuple[int, ...], num_in: int, bits: int) -> tuple[int, ...]:
    """The shape of a weight's scales, [groups, out..]."""
    inputs = math.prod(shape[:num_in])
    return (inputs // group_size(inputs, bits), *shape[num_in:])
