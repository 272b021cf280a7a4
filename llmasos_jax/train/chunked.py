"""Losses from hidden states, a few tokens at a time: no scores of all tokens, ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.train.losses import CrossEntropy, cross_entropy
from llmasos_jax.types import Tree

Score = Callable[[Tree, jax.Array], jax.Array]
Tokens = tuple[jax.Array, ...]  # hidden states, then what else is of each token


@dataclass(frozen=True)
class Chunks:
    """How tokens are scored a few at a time.

    Attributes:
      size: tokens of each row that are scored at once.
      z_loss: what the sum of squared normalisers is multiplied by in the loss.
      again: whether the backward pass scores once more. Else gradients are made in the forward
        pass, while the scores are there, and no product is done twice (Hsu et al., 2024, arXiv
        2410.10989). float16 needs it: gradients are representable only after the loss is scaled.
    """

    size: int
    z_loss: float = 0.0
    again: bool = False


def chunked_cross_entropy(
    score: Score,
    weights: Tree,
    x_bmd: jax.Array,
    targets: jax.Array,
    loss_weights: jax.Array,
    chunks: Chunks,
    smoothing: float | jax.Array | None = None,
) -> tuple[jax.Array, CrossEntropy]:
    """`cross_entropy(score(weights, x), ...)` without ever holding the scores of all tokens.

    Gradients of the weights are summed over chunks in float32.

    Args:
      score: `(weights, x [B, C, D]) -> float32 [B, C, V]`, a pure function that closes over no
        array, such as `Transformer.output_layer` gives.
      weights: its weights, all of them floating point.
      x_bmd: hidden states [B, M, D].
      targets: int32 [B, M].
      loss_weights: float32 [B, M]; not differentiated.
      chunks: in which parts; the last one may be smaller.
      smoothing: as of `cross_entropy`.

    Returns:
      `CrossEntropy.loss_sum`, which alone has a gradient, and the sums for reports.

    Example:
      >>> x = jnp.arange(6.0).reshape(1, 3, 2)
      >>> score = lambda w, x: jnp.einsum("bmd,dv->bmv", x, w)
      >>> tokens = (x, jnp.array([[0, 1, 1]]), jnp.ones((1, 3)))
      >>> loss, sums = chunked_cross_entropy(score, jnp.eye(2), *tokens, Chunks(size=2))
      >>> print(f"{loss:.4f} {sums.correct_sum:.0f} of {sums.weight_sum:.0f}")
      1.9398 2 of 3
    """

    def sums_of(weights: Tree, chunk: Tokens, given: Tree) -> CrossEntropy:
        x_bcd, targets, loss_weights = chunk
        return cross_entropy(score(weights, x_bcd), targets, loss_weights, given.get("smoothing"))

    def total(sums: CrossEntropy) -> jax.Array:
        return sums.loss_sum(chunks.z_loss)

    parts = Parts(sums_of, total, chunks.size, chunks.again)
    # An argument, since `sums_of` may close over no array.
    given = {} if smoothing is None else {"smoothing": jnp.float32(smoothing)}
    return chunked_loss(parts, weights, (x_bmd, targets, loss_weights), given)


@dataclass(frozen=True)
class Parts:
    """A loss that is made of sums over tokens.

    Attributes:
      sums_of: `(weights, chunk, given) -> sums`, a tree of float32 scalars over a chunk of tokens;
        a pure function that closes over no array.
      total: from sums to the loss, a linear function of them.
      size: tokens of each row that are scored at once.
      again: as in `Chunks`.
    """

    sums_of: Callable[[Tree, Tokens, Tree], Any]
    total: Callable[[Any], jax.Array]
    size: int
    again: bool = False


def chunked_loss(
    parts: Parts, weights: Tree, tokens: Tokens, given: Tree | None = None
) -> tuple[jax.Array, Any]:
    """A loss from hidden states, a few tokens at a time.

    Args:
      parts: what is computed of a few tokens.
      weights: differentiated; all of them floating point.
      tokens: arrays [B, M, ...], cut along M. The first one, hidden states, is differentiated.
      given: arrays that every chunk reads whole; not differentiated.

    Returns:
      The loss, which alone has a gradient, and the sums over all tokens.
    """
    out: Any = _loss(parts, weights, tokens[0], tokens[1:], given or {})
    loss, sums = out
    return loss, lax.stop_gradient(sums)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    parts: Parts, weights: Tree, x_bmd: jax.Array, others: Tokens, given: Tree
) -> tuple[jax.Array, Any]:
    tokens = (x_bmd, *others)

    def step(total: Any, chunk: Tokens) -> tuple[Any, None]:
        return _add(total, parts.sums_of(weights, chunk, given)), None

    zeros = _zero_sums(parts, weights, tokens, given)
    sums, _ = _each(step, zeros, tokens, parts.size)
    return parts.total(sums), sums


def _forward(
    parts: Parts, weights: Tree, x_bmd: jax.Array, others: Tokens, given: Tree
) -> tuple[Any, Any]:
    if parts.again:
        return _loss(parts, weights, x_bmd, others, given), (weights, x_bmd, others, given)
    one = jnp.ones((), jnp.float32)
    out, grad_weights, grad_x = _with_gradients(parts, weights, (x_bmd, *others), given, one)
    return out, (grad_weights, grad_x)


def _backward(parts: Parts, kept: Any, cotangents: Any) -> tuple[Tree, jax.Array, None, None]:
    scale = cotangents[0]
    if parts.again:
        weights, x_bmd, others, given = kept
        _, grad_weights, grad_x = _with_gradients(parts, weights, (x_bmd, *others), given, scale)
    else:
        grad_weights, grad_x = jax.tree.map(lambda g: (g * scale).astype(g.dtype), kept)
    return grad_weights, grad_x, None, None


_loss.defvjp(_forward, _backward)


def _with_gradients(
    parts: Parts, weights: Tree, tokens: Tokens, given: Tree, scale: jax.Array
) -> tuple[tuple[jax.Array, Any], Tree, jax.Array]:
    """The loss and its sums, and the gradients of `scale` times it by weights and states."""

    def step(total: Any, chunk: Tokens) -> tuple[Any, jax.Array]:
        def loss(weights: Tree, x_bcd: jax.Array) -> tuple[jax.Array, Any]:
            sums = parts.sums_of(weights, (x_bcd, *chunk[1:]), given)
            return parts.total(sums) * scale, sums

        (grad_weights, grad_x), sums = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            weights, chunk[0]
        )
        return _add(total, (sums, grad_weights)), grad_x

    start = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    zeros = _zero_sums(parts, weights, tokens, given)
    (sums, grad_weights), grad_x = _each(step, (zeros, start), tokens, parts.size)
    grad_weights = jax.tree.map(lambda g, w: g.astype(w.dtype), grad_weights, weights)
    return (parts.total(sums), sums), grad_weights, grad_x


def _zero_sums(parts: Parts, weights: Tree, tokens: Tokens, given: Tree) -> Any:
    one = tuple(x[:, :1] for x in tokens)
    shapes = jax.eval_shape(parts.sums_of, weights, one, given)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _add(total: Any, part: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, part)


def _each(step: Callable, start: Any, tokens: Tokens, size: int) -> tuple[Any, Any]:
    """Runs `step` over chunks of the tokens; what it gives of each token comes back in order."""
    num_tokens = tokens[0].shape[1]
    whole = num_tokens - num_tokens % size

    def cut(x: jax.Array) -> jax.Array:
        parts = x[:, :whole].reshape(x.shape[0], -1, size, *x.shape[2:])
        return parts.swapaxes(0, 1)

    total, parts = start, []
    if whole:
        total, out = lax.scan(step, total, jax.tree.map(cut, tokens))
        parts += [] if out is None else [out.swapaxes(0, 1).reshape(-1, whole, *out.shape[3:])]
    if whole < num_tokens:
        total, out = step(total, tuple(x[:, whole:] for x in tokens))
        parts += [] if out is None else [out]
    return total, jnp.concatenate(parts, axis=1) if parts else None
