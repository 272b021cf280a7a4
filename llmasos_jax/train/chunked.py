"""Cross-entropy from hidden states, a few tokens at a time: no scores of all tokens, ever."""

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
Tokens = tuple[jax.Array, jax.Array, jax.Array]  # hidden states, targets, weights


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

    Returns:
      `nll_sum + z_loss * z_sum`, which alone has a gradient, and the sums for reports.

    Example:
      >>> x = jnp.arange(6.0).reshape(1, 3, 2)
      >>> score = lambda w, x: jnp.einsum("bmd,dv->bmv", x, w)
      >>> tokens = (x, jnp.array([[0, 1, 1]]), jnp.ones((1, 3)))
      >>> loss, sums = chunked_cross_entropy(score, jnp.eye(2), *tokens, Chunks(size=2))
      >>> print(f"{loss:.4f} {sums.correct_sum:.0f} of {sums.weight_sum:.0f}")
      1.9398 2 of 3
    """
    out: Any = _loss(score, chunks, weights, (x_bmd, targets, loss_weights))
    loss, sums = out
    return loss, lax.stop_gradient(sums)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    score: Score, chunks: Chunks, weights: Tree, tokens: Tokens
) -> tuple[jax.Array, CrossEntropy]:
    def step(total: CrossEntropy, chunk: Tokens) -> tuple[CrossEntropy, None]:
        return _add(total, _sums(score, weights, chunk)), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = _each(step, CrossEntropy(zero, zero, zero, zero), tokens, chunks)
    return sums.nll_sum + chunks.z_loss * sums.z_sum, sums


def _forward(score: Score, chunks: Chunks, weights: Tree, tokens: Tokens) -> tuple[Any, Any]:
    if chunks.again:
        return _loss(score, chunks, weights, tokens), (weights, tokens)
    one = jnp.ones((), jnp.float32)
    out, grad_weights, grad_x = _with_gradients(score, chunks, weights, tokens, one)
    return out, (grad_weights, grad_x)


def _backward(score: Score, chunks: Chunks, kept: Any, cotangents: Any) -> tuple[Tree, Any]:
    scale = cotangents[0]
    if chunks.again:
        weights, tokens = kept
        _, grad_weights, grad_x = _with_gradients(score, chunks, weights, tokens, scale)
    else:
        grad_weights, grad_x = jax.tree.map(lambda g: (g * scale).astype(g.dtype), kept)
    return grad_weights, (grad_x, None, None)


_loss.defvjp(_forward, _backward)


def _with_gradients(
    score: Score, chunks: Chunks, weights: Tree, tokens: Tokens, scale: jax.Array
) -> tuple[tuple[jax.Array, CrossEntropy], Tree, jax.Array]:
    """The loss and its sums, and the gradients of `scale` times it by weights and states."""

    def step(total: Any, chunk: Tokens) -> tuple[Any, jax.Array]:
        def loss(weights: Tree, x_bcd: jax.Array) -> tuple[jax.Array, CrossEntropy]:
            sums = _sums(score, weights, (x_bcd, *chunk[1:]))
            return (sums.nll_sum + chunks.z_loss * sums.z_sum) * scale, sums

        (grad_weights, grad_x), sums = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            weights, chunk[0]
        )
        return _add(total, (sums, grad_weights)), grad_x

    zero = jnp.zeros((), jnp.float32)
    start = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    sums = CrossEntropy(zero, zero, zero, zero)
    (sums, grad_weights), grad_x = _each(step, (sums, start), tokens, chunks)
    loss = sums.nll_sum + chunks.z_loss * sums.z_sum
    grad_weights = jax.tree.map(lambda g, w: g.astype(w.dtype), grad_weights, weights)
    return (loss, sums), grad_weights, grad_x


def _sums(score: Score, weights: Tree, chunk: Tokens) -> CrossEntropy:
    x_bcd, targets, loss_weights = chunk
    return cross_entropy(score(weights, x_bcd), targets, loss_weights)


def _add(total: Any, part: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, part)


def _each(step: Callable, start: Any, tokens: Tokens, chunks: Chunks) -> tuple[Any, Any]:
    """Runs `step` over chunks of the tokens; what it gives of each token comes back in order."""
    num_tokens = tokens[0].shape[1]
    whole = num_tokens - num_tokens % chunks.size

    def cut(x: jax.Array) -> jax.Array:
        parts = x[:, :whole].reshape(x.shape[0], -1, chunks.size, *x.shape[2:])
        return parts.swapaxes(0, 1)

    total, parts = start, []
    if whole:
        total, out = lax.scan(step, total, jax.tree.map(cut, tokens))
        parts += [] if out is None else [out.swapaxes(0, 1).reshape(-1, whole, *out.shape[3:])]
    if whole < num_tokens:
        total, out = step(total, tuple(x[:, whole:] for x in tokens))
        parts += [] if out is None else [out]
    return total, jnp.concatenate(parts, axis=1) if parts else None
