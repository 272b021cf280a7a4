"""Optimizer moments in bfloat16 or in eight bits.

A wrapper around any optimizer: between steps it keeps the large parts of its state narrow, and
gives them to the update as float32. Only what has the shape of a weight of products is encoded;
the moments of scales and biases, and Adafactor's factors, stay as they are.

Eight bits are a sign and 127 magnitudes, or 255 magnitudes for means of squares, evenly spaced in
the logarithm: 12% from one to the next, down to 2^-20 (for squares 2^-40) of the largest number of
the row. A row is what lies along a weight's last axis. Dettmers et al., 2021, arXiv 2110.02861,
have blocks of 2048 and a table with more levels near 1; a row has the shape and so the sharding of
its weight, and the logarithm gives small numbers the precision of large ones, so that no block has
to shield them from an outlier.

Both kinds are rounded up or down at random, right on average. Adam's second moment moves by a
thousandth of itself in a step: rounded to the nearest it would not move at all. A square that is
not zero never becomes zero, so no step is divided by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.noise import round_at_random, uniform
from llmasos_jax.train.optim import like_params
from llmasos_jax.train.weights import map_named, matrix
from llmasos_jax.types import Tree

_OCTAVES = 20.0
# What lies in the states that optimizers keep: which of their fields are moments, and of squares.
_IS_SQUARE: Mapping[type, Mapping[str, bool]] = {
    optax.ScaleByAdamState: {"mu": False, "nu": True},
    optax.ScaleByLionState: {"mu": False},
    optax.ScaleByRmsState: {"nu": True},
    optax.TraceState: {"trace": False},
    contrib.MuonState: {"mu": False},
}
_UNKNOWN = "unknown"


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
      ConfigError: it keeps nothing that could be narrower, or for "int8" keeps it in a state of
        which is not known what are squares.
    """
    is_matrix = map_named(lambda path, _: matrix(path) is not None, shapes)

    def marks(state: Any) -> Any:
        return like_params(state, shapes, is_matrix, default=False)

    def encode(state: Any, seed: jax.Array) -> Any:
        return jax.tree.map(
            lambda leaf, yes, is_square: _encode(leaf, kind, is_square, seed) if yes else leaf,
            state,
            marks(state),
            _squares(state),
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

    found = jax.eval_shape(optimizer.init, shapes)
    marked = jax.tree.leaves_with_path(marks(found))
    if not any(yes for _, yes in marked):
        raise ConfigError(
            f'precision.moments="{kind}": optim.name="{name}" keeps no moment of a weight\'s size; '
            'set precision.moments="float32"'
        )
    squares = jax.tree.leaves(_squares(found))
    for (path, yes), is_square in zip(marked, squares, strict=True):
        if kind == "int8" and yes and is_square is _UNKNOWN:
            raise ConfigError(
                f'precision.moments="int8": optim.name="{name}" keeps '
                f"{jax.tree_util.keystr(path)}, and squares are rounded unlike other numbers: keep "
                f"them in one of {', '.join(known.__name__ for known in _IS_SQUARE)}, or set "
                'precision.moments="bfloat16"'
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


def _encode(leaf: jax.Array, kind: str, is_square: bool, seed: jax.Array) -> Any:
    if kind == "bfloat16":
        return round_at_random(leaf, seed)
    return encode_rows(leaf, is_square=is_square, seed=seed)


def _squares(state: Any) -> Any:
    """A tree like `state`: whether each leaf is of squares; `_UNKNOWN` where its state is."""

    def of(node: Any) -> Any:
        if type(node) not in _IS_SQUARE:
            return _UNKNOWN
        known = _IS_SQUARE[type(node)]
        like = lambda name: jax.tree.map(lambda _: known.get(name, _UNKNOWN), getattr(node, name))
        return type(node)(*map(like, node._fields))

    return jax.tree.map(of, state, is_leaf=lambda node: type(node) in _IS_SQUARE)


def _decode(leaf: Any) -> jax.Array:
    if isinstance(leaf, Coded):
        return decode_rows(leaf)
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf


def _is_coded(node: Any) -> bool:
    return isinstance(node, Coded)
