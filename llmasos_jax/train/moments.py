"""Optimizer moments in bfloat16 or in eight bits.

A wrapper around any optimizer: between steps it keeps the large parts of its state narrow, and
gives them to the update as float32. Only what has the shape of a weight of products is encoded;
the moments of scales and biases, and Adafactor's factors, stay as they are.

Eight bits are a sign and 127 magnitudes, or 255 magnitudes for means of squares ("nu"), evenly
spaced in the logarithm: 12% from one to the next, down to 2^-20 (for squares 2^-40) of the largest
number of the row. A row is what lies along a weight's last axis. Dettmers et al., 2021,
arXiv 2110.02861, have blocks of 2048 and a table with more levels near 1; a row has the shape and
so the sharding of its weight, and the logarithm gives small numbers the precision of large ones,
so that no block has to shield them from an outlier.

Both kinds are rounded up or down at random, right on average. Adam's second moment moves by a
thousandth of itself in a step: rounded to the nearest it would not move at all. A square that is
not zero never becomes zero, so no step is divided by it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.noise import round_at_random, uniform
from llmasos_jax.train.optim import like_params
from llmasos_jax.train.weights import map_named, matrix
from llmasos_jax.types import Tree

_OCTAVES = 20.0
_SQUARES = "nu"  # optax's name of a mean of squares


class Coded(NamedTuple):
    """Numbers in eight bits: int8 codes, or uint8 where none is negative; [..., 1] row maxima."""

    codes: jax.Array
    scale: jax.Array


class MomentsState(NamedTuple):
    """Updates done, and the optimizer's state with its moments encoded."""

    count: jax.Array
    inner: Any


def with_moments(
    optimizer: optax.GradientTransformation, kind: str, shapes: Tree, name: str
) -> optax.GradientTransformation:
    """An optimizer that keeps its moments as `precision.moments` says.

    Args:
      optimizer: any.
      kind: "bfloat16" or "int8".
      shapes: the weights' shapes.
      name: of the optimizer, for the error.

    Raises:
      ConfigError: it keeps nothing that could be narrower.
    """
    is_matrix = map_named(lambda path, _: matrix(path) is not None, shapes)

    def marks(state: Any) -> Any:
        return like_params(state, shapes, is_matrix, default=False)

    def encode(state: Any, seed: jax.Array) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf, yes: _encode(path, leaf, kind, seed) if yes else leaf,
            state,
            marks(state),
        )

    def init(params: optax.Params) -> MomentsState:
        count = jnp.zeros([], jnp.int32)
        return MomentsState(count, encode(optimizer.init(params), count))

    def update(
        updates: optax.Updates, state: MomentsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MomentsState]:
        inner = jax.tree.map(_decode, state.inner, is_leaf=_is_coded)
        updates, inner = optimizer.update(updates, inner, params)
        count = state.count + 1
        return updates, MomentsState(count, encode(inner, count))

    if not any(jax.tree.leaves(marks(jax.eval_shape(optimizer.init, shapes)))):
        raise ConfigError(
            f'precision.moments="{kind}": optim.name="{name}" keeps no moment of a weight\'s size; '
            'set precision.moments="float32"'
        )
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def encode_rows(x: jax.Array, *, is_square: bool, seed: jax.Array | int = 0) -> Coded:
    """Rounds float32 numbers to eight bits, at random, with a scale for each row of the last axis.

    Args:
      x: [..., n].
      is_square: whether none is negative, and each wants twice the octaves.
      seed: another one for each step.

    Example:
      >>> coded = encode_rows(jnp.array([[4.0, -4.0, 0.0]]), is_square=False)
      >>> coded.codes.tolist(), coded.scale.tolist(), decode_rows(coded).tolist()
      ([[127, -127, 0]], [[4.0]], [[4.0, -4.0, 0.0]])
    """
    top, step = _levels(is_square)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    share = jnp.abs(x) / jnp.where(scale > 0, scale, 1.0)
    smallest = jnp.exp2(-step * (top - 1))
    if is_square:
        share = jnp.where(share > 0, jnp.maximum(share, smallest), 0.0)
    place = top + jnp.log2(jnp.maximum(share, jnp.finfo(jnp.float32).tiny)) / step
    low = jnp.clip(jnp.floor(place), 0, top - 1)
    low_value = jnp.where(low > 0, jnp.exp2(step * (low - top)), 0.0)
    high_value = jnp.exp2(step * (low + 1 - top))
    goes_up = uniform(x, seed) * (high_value - low_value) < share - low_value
    level = low + goes_up
    if is_square:
        level = jnp.where(share > 0, jnp.maximum(level, 1), 0)
        return Coded(level.astype(jnp.uint8), scale)
    return Coded((jnp.sign(x) * level).astype(jnp.int8), scale)


def decode_rows(coded: Coded) -> jax.Array:
    """The float32 numbers of `encode_rows`."""
    top, step = _levels(coded.codes.dtype == jnp.uint8)
    level = coded.codes.astype(jnp.float32)
    size = jnp.exp2(step * (jnp.abs(level) - top)) * coded.scale
    return jnp.where(level == 0, 0.0, jnp.sign(level) * size)


def _levels(is_square: bool) -> tuple[int, float]:
    """The largest code, and the octaves from one to the next."""
    top = 255 if is_square else 127
    return top, (2 if is_square else 1) * _OCTAVES / (top - 1)


def _encode(path: Any, leaf: jax.Array, kind: str, seed: jax.Array) -> Any:
    if kind == "bfloat16":
        return round_at_random(leaf, seed)
    names = {entry.name for entry in path if isinstance(entry, jax.tree_util.GetAttrKey)}
    return encode_rows(leaf, is_square=_SQUARES in names, seed=seed)


def _decode(leaf: Any) -> jax.Array:
    if isinstance(leaf, Coded):
        return decode_rows(leaf)
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf


def _is_coded(node: Any) -> bool:
    return isinstance(node, Coded)
