"""Rotary positions (Su et al., 2021, arXiv 2104.09864) and the ways to stretch them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.config.model import ModelConfig, RopeScaling


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotation:
    """Sine and cosine of each position's angles, float32 [B, T, R/2], R the rotated head width."""

    sin: jax.Array
    cos: jax.Array


def rotations(
    cfg: ModelConfig, positions_bt: jax.Array, lengths_bt: jax.Array | None = None
) -> dict[str, Rotation]:
    """The rotations that the layers of a model need, by name.

    "global", and "local" where layers with a window have a base of their own.

    Args:
      cfg: the model.
      positions_bt: int32 [B, T].
      lengths_bt: int32 [B, T], how long the sequence is that each token belongs to, in tokens:
        "longrope" chooses its factors by it. None: a row's greatest position, and 1.
    """
    if cfg.position != "rope":
        return {}
    width, theta, scaling = cfg.rope_width, cfg.rope_theta, cfg.rope_scaling
    if scaling.kind == "longrope":
        if lengths_bt is None:
            lengths_bt = jnp.max(positions_bt, axis=1, keepdims=True) + 1
        is_long_bt1 = (lengths_bt > (scaling.original_length or 0))[:, :, None]
        short, multiplier = frequencies(width, theta, scaling)
        long, _ = frequencies(width, theta, scaling, is_long=True)
        inverse_btr = jnp.where(is_long_bt1, long[None, None], short[None, None])
        table = {"global": _rotation(positions_bt, inverse_btr, multiplier)}
    else:
        inverse, multiplier = frequencies(width, theta, scaling)
        table = {"global": _rotation(positions_bt, inverse[None, None], multiplier)}
    if cfg.rope_theta_local is not None:
        local, _ = frequencies(width, cfg.rope_theta_local, RopeScaling())
        table["local"] = _rotation(positions_bt, local[None, None], 1.0)
    return table


def rotate(x_btnh: jax.Array, rotation: Rotation, *, interleaved: bool = False) -> jax.Array:
    """Rotates the first R numbers of each head by its position's angles.

    Args:
      x_btnh: queries or keys, [B, T, N, H].
      rotation: of the same B and T (or B = 1).
      interleaved: pairs are neighbours (0, 1), (2, 3); else number i of the first half with i of
        the second.

    Returns:
      [B, T, N, H] in `x_btnh`'s dtype, computed in float32.
    """
    sin, cos = rotation.sin[:, :, None, :], rotation.cos[:, :, None, :]
    width = 2 * sin.shape[-1]
    x, rest = x_btnh[..., :width].astype(jnp.float32), x_btnh[..., width:]
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = jnp.split(x, 2, axis=-1)
    a, b = first * cos - second * sin, second * cos + first * sin
    y = (
        jnp.stack([a, b], axis=-1).reshape(x.shape)
        if interleaved
        else jnp.concatenate([a, b], axis=-1)
    )
    return (
        jnp.concatenate([y.astype(x_btnh.dtype), rest], axis=-1)
        if rest.shape[-1]
        else y.astype(x_btnh.dtype)
    )


@jax.custom_vjp
def rotate_by_product(x_btnh: jax.Array, rotation: Rotation) -> jax.Array:
    """`rotate` for bfloat16 on a TPU: the halves change places in the matrix unit.

    Moving numbers along a vector's lanes costs it more than a product with a 0/1 matrix does, which
    is exact in bfloat16. The gradient is the rotation back, rounded once. No forward-mode
    derivatives, and none of the angles.
    """
    return _turned(x_btnh, rotation.sin, rotation.cos)


def _turned(x_btnh: jax.Array, sin_btr: jax.Array, cos_btr: jax.Array) -> jax.Array:
    half, width = sin_btr.shape[-1], x_btnh.shape[-1]
    swap_hi = np.zeros((width, width), np.float32)
    index = np.arange(half)
    swap_hi[index + half, index], swap_hi[index, index + half] = -1.0, 1.0
    rest = [(0, 0), (0, 0), (0, width - 2 * half)]
    cos_bth = jnp.pad(jnp.concatenate([cos_btr] * 2, axis=-1), rest, constant_values=1.0)
    sin_bth = jnp.pad(jnp.concatenate([sin_btr] * 2, axis=-1), rest)
    swapped = jnp.einsum("btnh,hi->btni", x_btnh, jnp.asarray(swap_hi, x_btnh.dtype))
    x, swapped = x_btnh.astype(jnp.float32), swapped.astype(jnp.float32)
    return (x * cos_bth[:, :, None] + swapped * sin_bth[:, :, None]).astype(x_btnh.dtype)


def _rotate_fwd(x_btnh: jax.Array, rotation: Rotation) -> tuple[jax.Array, Rotation]:
    return _turned(x_btnh, rotation.sin, rotation.cos), rotation


def _rotate_bwd(rotation: Rotation, grad: jax.Array) -> tuple[jax.Array, Rotation]:
    back = _turned(grad, -rotation.sin, rotation.cos)
    return back, jax.tree.map(jnp.zeros_like, rotation)


rotate_by_product.defvjp(_rotate_fwd, _rotate_bwd)


def document_lengths(positions_bt: jax.Array, segment_ids_bt: jax.Array) -> jax.Array:
    """How long the document of each token is: its greatest position, and 1; int32 [B, T].

    Args:
      positions_bt: int32 [B, T].
      segment_ids_bt: int32 [B, T], 0 to T, documents of packed rows.

    Example:
      >>> document_lengths(jnp.array([[0, 1, 2, 0, 1]]), jnp.array([[1, 1, 1, 2, 2]]))
      Array([[3, 3, 3, 2, 2]], dtype=int32)
    """
    b, t = positions_bt.shape
    row_b1 = jnp.arange(b, dtype=jnp.int32)[:, None]
    longest = jnp.zeros((b, t + 1), jnp.int32)
    longest = longest.at[row_b1, segment_ids_bt].max(positions_bt.astype(jnp.int32) + 1)
    return longest[row_b1, segment_ids_bt]


def frequencies(
    width: int, theta: float, scaling: RopeScaling, *, is_long: bool = False
) -> tuple[np.ndarray, float]:
    """Angles per position, float32 [width / 2], and what sine and cosine are multiplied by.

    `is_long` says whether the sequence is longer than the original context: for "longrope" alone.

    Example:
      >>> frequencies(4, 100.0, RopeScaling())
      (array([1. , 0.1], dtype=float32), 1.0)
    """
    inverse = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    if scaling.kind == "linear":
        return (inverse / scaling.factor).astype(np.float32), 1.0
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling).astype(np.float32), 1.0
    if scaling.kind == "yarn":
        factor = scaling.attention_factor
        multiplier = (
            factor if factor is not None else 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0
        )
        return _yarn(inverse, width, theta, scaling).astype(np.float32), multiplier
    if scaling.kind == "longrope":
        factors = scaling.long_factors if is_long else scaling.short_factors
        return (inverse / np.array(factors)).astype(np.float32), _longrope_multiplier(scaling)
    return inverse.astype(np.float32), 1.0


def _rotation(
    positions_bt: jax.Array, inverse_btr: jax.Array | np.ndarray, multiplier: float
) -> Rotation:
    angles = positions_bt.astype(jnp.float32)[:, :, None] * jnp.asarray(inverse_btr)
    return Rotation(jnp.sin(angles) * multiplier, jnp.cos(angles) * multiplier)


def _longrope_multiplier(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    more = math.log(max(scaling.factor, 1.0)) / math.log(scaling.original_length or math.e)
    return math.sqrt(1.0 + more)


def _llama3(inverse: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    # Turns over the original context decide: slow ones are divided, fast ones kept, others blended.
    turns = (scaling.original_length or 0) * inverse / (2 * math.pi)
    smooth = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * inverse / scaling.factor + smooth * inverse


def _yarn(inverse: np.ndarray, width: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    def dimension(turns: float) -> float:
        return (
            width
            * math.log((scaling.original_length or 1) / (turns * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return inverse / scaling.factor * ramp + inverse * (1 - ramp)
