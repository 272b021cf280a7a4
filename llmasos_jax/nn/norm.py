"""Normalisation, always computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.nn.weight import weight


def rms_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, axes: tuple[int, ...]
) -> jax.Array:
    """Gives x / sqrt(mean(x^2) + eps) * scale (Zhang and Sennrich, 2019, arXiv 1910.07467, eq. 4).

    Args:
      x: float32 [..., D].
      scale: float32 [D], or of the normalised dimensions.
      bias: ignored; an RMSNorm has none.
      eps: added to the mean square.
      axes: dimensions of `x` to normalise over.
    """
    del bias
    return x * lax.rsqrt(jnp.mean(x * x, axis=axes, keepdims=True) + eps) * scale


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, axes: tuple[int, ...]
) -> jax.Array:
    """Gives (x - mean(x)) / sqrt(var(x) + eps) * scale + bias (Ba et al., 2016, arXiv 1607.06450).

    Shapes as in `rms_norm`.
    """
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    y = centred * lax.rsqrt(jnp.mean(centred * centred, axis=axes, keepdims=True) + eps) * scale
    return y if bias is None else y + bias


NORMS = {"rmsnorm": rms_norm, "layernorm": layer_norm}


class Norm(nnx.Module):
    """A norm over the last dimensions of its input, with its scale and a LayerNorm's bias."""

    def __init__(
        self,
        cfg: ModelConfig,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        use_bias: bool = True,
        stack: int | None = None,
    ) -> None:
        self.norm_fn = resolve(cfg.norm, NORMS, "model.norm")
        self.eps = cfg.norm_eps
        self.unit_offset = cfg.norm_unit_offset
        self.num_dims = len(shape)
        self.scale = weight(
            shape, axes, init="zeros" if cfg.norm_unit_offset else "ones", stack=stack
        )
        has_bias = use_bias and cfg.norm_bias and cfg.norm != "rmsnorm"
        self.bias = weight(shape, axes, init="zeros", stack=stack) if has_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x` [..., *shape]; computes in float32, returns `x`'s dtype."""
        lead = (1,) * (x.ndim - self.num_dims)
        scale = self.scale[...].astype(jnp.float32)
        scale = (scale + 1.0 if self.unit_offset else scale).reshape(*lead, *scale.shape)
        bias = (
            None if self.bias is None else self.bias[...].astype(jnp.float32).reshape(scale.shape)
        )
        axes = tuple(range(-self.num_dims, 0))
        return self.norm_fn(x.astype(jnp.float32), scale, bias, self.eps, axes).astype(x.dtype)
