"""Attention whose keys and values come from one small latent vector per token."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_finite, require_positive
from llmasos_jax.errors import ConfigError


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-AI, 2024, arXiv 2405.04434, section 2.1).

    Keys and values are products of a normalised vector of `kv_rank` numbers. Each head's query and
    key are `head_dim - rope_dim` numbers without positions, then `rope_dim` rotated ones; the
    rotated part of the key is one for all heads.

    Attributes:
      kv_rank: width of the latent vector; 0 means ordinary attention.
      q_rank: width of the latent vector of queries; None means queries straight from x.
      rope_dim: rotated numbers of each head; the model's `head_dim` counts them too.
      value_dim: width of one head's value; None means `head_dim`.
      norm_eps: of the norms of the latent vectors (RMSNorm).
    """

    kv_rank: int = 0
    q_rank: int | None = None
    rope_dim: int = 64
    value_dim: int | None = None
    norm_eps: float = 1e-6


def check_latent(latent: LatentAttention, head_dim: int) -> None:
    """Raises ConfigError for the first field that breaks a rule."""
    path = "model.latent"
    require_finite(path, latent)
    for name in ("q_rank", "rope_dim", "value_dim", "norm_eps"):
        if getattr(latent, name) is not None:
            require_positive(f"{path}.{name}", getattr(latent, name))
    if latent.kv_rank < 0:
        raise ConfigError(f"{path}.kv_rank={latent.kv_rank} must be 0 or more")
    if latent.kv_rank == 0:
        if latent != LatentAttention():
            raise ConfigError(
                f"{path}.kv_rank=0 is ordinary attention, other fields of model.latent are set; "
                "set kv_rank too, or leave them at their defaults"
            )
        return
    if latent.rope_dim % 2 or latent.rope_dim >= head_dim:
        raise ConfigError(
            f"{path}.rope_dim={latent.rope_dim} must be even and below head_dim={head_dim}"
        )
