"""Adafactor on weights as this package stores them: unflattened, and stacked over layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llmasos_jax.train.weights import Matrix, Path, map_named, matrix, num_lead

# Names and values as in the paper's algorithm 4.
_DECAY_POWER = 0.8
_EPS_SQUARE = 1e-30
_SMALLEST_SCALE = 1e-3
_CLIP_RMS = 1.0


class AdafactorState(NamedTuple):
    """Means of squared gradients; a weight that is no matrix has all of them in `rows`."""

    count: jax.Array
    rows: Any
    columns: Any


def scale_by_adafactor() -> optax.GradientTransformation:
    """Divides gradients by a rank-one estimate of their RMS; steps get the weight's own scale.

    `optax.adafactor` factors the two largest dimensions of an array and takes one RMS over all
    of it; with [L, D, N, H] in one array these would mix layers, heads and widths. Here the rows
    are the dimensions that a product contracts, the columns those that it gives, and each layer
    of a stack and each expert has its own RMS. On plain matrices both agree. The learning rate is
    relative to each weight's RMS, as in the paper; 1e-2 is a usual peak.

    Returns:
      A transformation whose `update` needs `params`.

    References:
      Shazeer and Stern, 2018, arXiv 1804.04235, algorithm 4 (no momentum, beta2 = 1 - t^-0.8).
    """

    def init(params: optax.Params) -> AdafactorState:
        return AdafactorState(
            count=jnp.zeros([], jnp.int32),
            rows=map_named(_zero_rows, params),
            columns=map_named(_zero_columns, params),
        )

    def update(
        updates: optax.Updates, state: AdafactorState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdafactorState]:
        if params is None:
            raise ValueError(
                "adafactor scales steps by the weights: call update(grads, state, params)"
            )
        count = jnp.asarray(optax.safe_increment(state.count))
        beta = 1.0 - count.astype(jnp.float32) ** -_DECAY_POWER
        squares = jax.tree.map(lambda g: jnp.square(g) + _EPS_SQUARE, updates)
        mix = lambda old, new: beta * old + (1.0 - beta) * new
        rows = map_named(lambda p, v, g2: mix(v, _row_mean(p, g2)), state.rows, squares)
        columns = map_named(lambda p, v, g2: mix(v, _column_mean(p, g2)), state.columns, squares)
        steps = map_named(_step, updates, rows, columns, params)
        return steps, AdafactorState(count, rows, columns)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _step(
    path: Path, grad: jax.Array, row: jax.Array, column: jax.Array, param: jax.Array
) -> jax.Array:
    dims = matrix(path)
    if dims is None:
        step = grad * jax.lax.rsqrt(row)
    else:
        row_share = row / jnp.mean(row, axis=dims.in_dims, keepdims=True)
        step = grad * jax.lax.rsqrt(row_share) * jax.lax.rsqrt(column)
    step = step / jnp.maximum(1.0, _rms(path, step) / _CLIP_RMS)
    return step * jnp.maximum(_rms(path, param), _SMALLEST_SCALE)


def _rms(path: Path, x: jax.Array) -> jax.Array:
    dims = tuple(range(num_lead(path), x.ndim))
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=dims, keepdims=True))


def _row_mean(path: Path, squares: jax.Array) -> jax.Array:
    dims = matrix(path)
    return squares if dims is None else jnp.mean(squares, axis=dims.out_dims, keepdims=True)


def _column_mean(path: Path, squares: jax.Array) -> jax.Array:
    dims = matrix(path)
    # A weight that is no matrix has no columns: an empty array keeps the tree's shape.
    return squares[..., :0] if dims is None else jnp.mean(squares, axis=dims.in_dims, keepdims=True)


def _zero_rows(path: Path, param: jax.Array) -> jax.Array:
    dims = matrix(path)
    return jnp.zeros(
        param.shape if dims is None else _collapsed(param.shape, dims.out_dims), jnp.float32
    )


def _zero_columns(path: Path, param: jax.Array) -> jax.Array:
    dims: Matrix | None = matrix(path)
    if dims is None:
        return jnp.zeros((*param.shape[:-1], 0), jnp.float32)
    return jnp.zeros(_collapsed(param.shape, dims.in_dims), jnp.float32)


def _collapsed(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if dim in dims else size for dim, size in enumerate(shape))
