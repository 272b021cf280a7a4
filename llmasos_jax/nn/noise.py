"""Numbers that look random, made from an array's own bits: for rounding up or down at random."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_WEYL = 0x9E3779B9  # 2^32 / golden ratio: successive multiples are spread evenly


def hashed(x: jax.Array, seed: jax.Array | int = 0) -> jax.Array:
    """Hashes each number with its place and a seed, by murmur3's last mixing.

    No key is split and no state kept: the same array and seed give the same bits, on every mesh.

    Args:
      x: float32, any shape.
      seed: int32 scalar.

    Returns:
      uint32 in the shape of `x`, evenly spread.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits ^ (jnp.asarray(seed).astype(jnp.uint32) * jnp.uint32(0x85EBCA77))
    stride = 1
    for dim in reversed(range(x.ndim)):
        place = lax.broadcasted_iota(jnp.uint32, x.shape, dim)
        bits = bits ^ (place * jnp.uint32(stride * _WEYL & 0xFFFFFFFF))
        stride *= x.shape[dim]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
    return bits ^ (bits >> jnp.uint32(16))


def uniform(x: jax.Array, seed: jax.Array | int = 0) -> jax.Array:
    """float32 numbers in [0, 1) in the shape of `x`, see `hashed`."""
    return (hashed(x, seed) >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24


def round_at_random(x: jax.Array, seed: jax.Array | int = 0) -> jax.Array:
    """Rounds float32 to bfloat16, up or down at random, so that the mean is right.

    Example:
      >>> x = jnp.full((10_000,), 1.0 + 2.0**-9)  # a quarter of the way from 1 to 1 + 2^-7
      >>> up = round_at_random(x) > 1
      >>> abs(float(up.mean()) - 0.25) < 0.02
      True
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + (hashed(x, seed) & jnp.uint32(0xFFFF))
    bits = bits & jnp.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
