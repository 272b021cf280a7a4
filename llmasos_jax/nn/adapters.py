"""A product's weight with a low-rank change beside it, or kept in few bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.nn.experts import Assigned
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight

LORA, SCALES = "_lora", "_scales"  # what is behind a weight's name: its change, its codes' scales
_RANK = "R"  # in a product's spec


class Lora(nnx.Module):
    """x W + scale (x A) B (Hu et al., 2021, arXiv 2106.09685).

    With a magnitude m (Liu et al., 2024, arXiv 2402.09353, eq. 5) each column of the sum
    W + scale A B is brought to length m; the length that it has is a constant to the gradient.
    Where nothing moves any more (`is_fixed`), m divided by that length is the weight itself.
    Each expert of a mixture has an A, a B and an m of its own.
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
        shape = param.shape if stack is None else param.shape[1:]
        self.scale = scale
        self.num_in, self.num_lead = param.num_in, param.num_lead
        lead, into, out_of = self._parts(shape)
        lead_axes, into_axes, out_axes = self._parts(param.axes)
        make = partial(weight, num_lead=self.num_lead, stack=stack)
        self.a = make(
            (*lead, *into, rank), (*lead_axes, *into_axes, None), init="fan_in", num_in=self.num_in
        )
        self.b = make((*lead, rank, *out_of), (*lead_axes, None, *out_axes), init="zeros", num_in=1)
        columns = (*lead, *out_of), (*lead_axes, *out_axes)
        magnitude = make(*columns, init="ones") if has_magnitude else None
        self.magnitude, self.ratio = (None, magnitude) if is_fixed else (magnitude, None)

    def __call__(
        self,
        y: jax.Array,
        spec: str,
        x: jax.Array,
        w: Callable[[], jax.Array],
        dot: Callable[..., jax.Array],
        assigned: Assigned | None,
    ) -> jax.Array:
        """`y` is x W; `spec` its einsum by `dot`; `w` gives W, where lengths need it."""
        inputs, _, output = spec.partition("->")
        x_axes, _, w_axes = inputs.partition(",")
        rows = "".join(axis for axis in x_axes if axis not in w_axes)
        lead, into, out_of = self._parts(w_axes)
        low = dot(f"{x_axes},{lead}{into}{_RANK}->{rows}{_RANK}", x, self.a[...])
        change = dot(f"{rows}{_RANK},{lead}{_RANK}{out_of}->{output}", low, self.b[...])
        y = y + jnp.asarray(self.scale, y.dtype) * change
        if self.ratio is not None:
            return _times(y, self.ratio[...], assigned)
        if self.magnitude is None:
            return y
        lengths = each(partial(column_lengths, scale=self.scale, num_in=self.num_in), self.num_lead)
        length = jax.lax.stop_gradient(lengths(w(), self.a[...], self.b[...]))
        return _times(y, self.magnitude[...] / length, assigned)

    def _parts(self, of: Any) -> tuple[Any, Any, Any]:
        """Of a weight's shape or axes what numbers matrices, what goes in, what comes out."""
        middle = self.num_lead + self.num_in
        return of[: self.num_lead], of[self.num_lead : middle], of[middle:]


def _times(y: jax.Array, ratio: jax.Array, assigned: Assigned | None) -> jax.Array:
    """`y` [.., out..] times one number for each column, [out..], of its own expert if there are."""
    if assigned is not None:
        return assigned.times(y, ratio)
    return y * jnp.expand_dims(ratio, range(y.ndim - ratio.ndim)).astype(y.dtype)


def product(
    module: nnx.Module,
    name: str,
    spec: str,
    x: jax.Array,
    runtime: Runtime,
    assigned: Assigned | None = None,
) -> jax.Array:
    """`x` times a weight of a module, with what stands beside the weight.

    Args:
      module: its attribute `name` is the weight; `name` + "_lora" its change, `name` + "_scales"
        what its codes are multiplied by, where there are such.
      name: of the weight.
      spec: of the einsum of `x` and the weight.
      x: activations.
      runtime: how to run.
      assigned: whose rows `x` has, where the weight is one for each expert, [E, in.., out..].
    """
    param = getattr(module, name)
    scales, lora = getattr(module, name + SCALES, None), getattr(module, name + LORA, None)
    dot = runtime.dot
    if assigned is not None:
        dot = lambda spec, x, w: runtime.dot_experts(x, w, assigned)
    elif param.is_float32:
        dot = partial(runtime.dot, dtype=jnp.float32, out_dtype=jnp.float32)
    widened = each(partial(dequantized, num_in=param.num_in), param.num_lead)
    if scales is None:
        y = dot(spec, x, param[...])
    elif runtime.coded_product is not None and assigned is None:
        y = runtime.coded_product(spec, x, param[...], scales[...], out_dtype=runtime.act_dtype)
    else:
        # Without this the backward pass would keep the weight at its full size.
        y = jax.checkpoint(lambda x, w, s: dot(spec, x, widened(w, s)))(x, param[...], scales[...])
    if lora is None:
        return y
    whole = lambda: param[...] if scales is None else widened(param[...], scales[...])
    return lora(y, spec, x, whole, dot, assigned)


def each(fn: Callable[..., Any], num_lead: int) -> Callable[..., Any]:
    """What is computed of one matrix, of so many leading dimensions of them: layers, experts.

    Example:
      >>> each(jnp.trace, 1)(jnp.ones((3, 2, 2))).tolist()
      [2.0, 2.0, 2.0]
    """
    for _ in range(num_lead):
        fn = jax.vmap(fn)
    return fn


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
