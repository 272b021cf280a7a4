"""Sums over examples whose report is no mean: F1 over classes, Pearson's r."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassCounts:
    """How often each class was right, said, and true; float32 [C], exact below 2^24.

    Example:
      >>> right, said, true = jnp.array([2.0, 1, 0]), jnp.array([3.0, 1, 0]), jnp.array([2.0, 2, 0])
      >>> print(f"{ClassCounts(right, said, true).values()['macro_f1']:.4f}")
      0.7333
    """

    right_c: jax.Array
    said_c: jax.Array
    true_c: jax.Array

    def values(self) -> dict[str, jax.Array]:
        """The mean of F1 over the classes that occur, said or true."""
        both_c = self.said_c + self.true_c
        f1_c = 2 * self.right_c / jnp.maximum(both_c, 1.0)
        return {"macro_f1": jnp.sum(f1_c) / jnp.maximum(jnp.sum(both_c > 0), 1)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Sums of x, y, x^2, y^2 and xy over examples, of numbers near 0."""

    count: jax.Array
    x: jax.Array
    y: jax.Array
    xx: jax.Array
    yy: jax.Array
    xy: jax.Array

    def values(self) -> dict[str, jax.Array]:
        """Pearson's r; 0 where x or y does not vary.

        Example:
          >>> x, y = jnp.array([1.0, 2, 3]), jnp.array([2.0, 4, 6])
          >>> r = moments(x, y, jnp.ones(3)).values()["pearson"]
          >>> print(f"{r:.4f}")
          1.0000
        """
        n = jnp.maximum(self.count, 1.0)
        var_x, var_y = self.xx - self.x * self.x / n, self.yy - self.y * self.y / n
        product = jnp.maximum(var_x, 0.0) * jnp.maximum(var_y, 0.0)
        safe = jnp.where(product > 0, product, 1.0)
        r = (self.xy - self.x * self.y / n) / jnp.sqrt(safe)
        return {"pearson": jnp.where(product > 0, jnp.clip(r, -1.0, 1.0), 0.0)}


def moments(x_b: jax.Array, y_b: jax.Array, weights_b: jax.Array) -> Moments:
    """Sums over a batch, each example counted by its weight."""
    total = lambda value: jnp.sum(weights_b * value)
    return Moments(
        jnp.sum(weights_b),
        *(total(x_b), total(y_b), total(x_b * x_b), total(y_b * y_b), total(x_b * y_b)),
    )
