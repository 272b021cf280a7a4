"""T5's relative positions: a bias of scores by how far a key lies from its query.

Raffel et al., 2019, arXiv 1910.10683, section 2.1; the buckets are those of its released code.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.nn.context import own_heads
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight


class RelativeBias(nnx.Module):
    """One table for all layers of a stack: a number for each bucket of distances and each head."""

    def __init__(self, cfg: ModelConfig) -> None:
        shape = (cfg.relative_buckets, cfg.query_heads)
        self.buckets = weight(shape, (None, "heads"), is_float32=True)
        self.max_distance = cfg.relative_max_distance
        self.both_ways = not cfg.causal

    def __call__(self, visible: Visibility, runtime: Runtime) -> jax.Array:
        """What is added to the scores of each query and key, float32 [N, T, S].

        With branches it is of each row, [B, N, T, S].
        """
        table_nb = own_heads(self.buckets[...].T, runtime)
        if visible.k_branches is not None:
            bucket_bts = buckets(
                visible.distance(), table_nb.shape[1], self.max_distance, both_ways=self.both_ways
            )
            bias_bnts = jnp.moveaxis(jnp.take(table_nb, bucket_bts, axis=1), 0, 1)
            return runtime.place(bias_bnts, None, "heads", None, None)
        bucket_ts = buckets(
            visible.distance()[0], table_nb.shape[1], self.max_distance, both_ways=self.both_ways
        )
        bias_nts = jnp.take(table_nb, bucket_ts, axis=1)
        return runtime.place(bias_nts, "heads", None, None)


def buckets(back: jax.Array, num: int, max_distance: int, *, both_ways: bool) -> jax.Array:
    """The bucket of each distance.

    ::

        back       0 1 .. e-1 | e ...................... max_distance ...
        bucket     0 1 .. e-1 | e, ever wider in log(back) .. num - 1

    with e = num / 2. Keys ahead of the query share bucket 0; or, if `both_ways`, each side has half
    of the buckets: what lies behind the first half, what lies ahead the second.

    Args:
      back: int32, how far a key lies behind its query; negative is ahead.
      num: buckets in all, a multiple of 4.
      max_distance: from here on all are in the last bucket of their side.
      both_ways: whether there are buckets for keys ahead.

    Returns:
      int32 of `back`'s shape, 0 to num - 1.

    Example:
      >>> buckets(jnp.array([-2, 0, 1, 5, 8, 15, 16, 100]), 8, 16, both_ways=False).tolist()
      [0, 0, 1, 4, 6, 7, 7, 7]
    """
    each = num // 2 if both_ways else num
    distance = jnp.abs(back) if both_ways else jnp.maximum(back, 0)
    exact = each // 2
    firsts = jnp.array(_firsts(each, max_distance), jnp.int32)
    wide = exact + jnp.searchsorted(firsts, distance, side="right")
    bucket = jnp.where(distance < exact, distance, wide.astype(jnp.int32))
    return bucket + jnp.where(back < 0, each, 0) if both_ways else bucket


@functools.cache
def _firsts(num: int, max_distance: int) -> tuple[int, ...]:
    """The first distance of each wide bucket but the first.

    The bucket of d is e + floor(log(d / e) / log(max_distance / e) * (num - e)), so bucket e + j
    begins with the first whole number from e (max_distance / e)^(j / (num - e)) on.
    """
    exact = num // 2
    shares = (Fraction(j, num - exact) for j in range(1, num - exact))
    return tuple(_first(exact, max_distance, share) for share in shares)


def _first(exact: int, max_distance: int, share: Fraction) -> int:
    edge = exact * (max_distance / exact) ** float(share)
    near = round(edge)
    if abs(edge - near) > 1e-12 * edge:
        return math.ceil(edge)
    # So near a whole number rounding would decide; whole numbers round nothing.
    up, down = share.numerator, share.denominator
    return near + (near**down * exact**up < max_distance**up * exact**down)
