"""What the library knows of one published architecture, and how it is made small."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling

_UNITS = {"M": 10**6, "B": 10**9}
_TINY_VOCAB = 272  # room for the ids of bytes, and divisible by 2, 4, 8 and 16 devices
_TINY_DIM = 64
_TINY_LENGTH = 64
_TINY_WINDOW = 8


@dataclass(frozen=True)
class Preset:
    """A published architecture.

    Attributes:
      name: what `preset` takes.
      architecture: the family, as `model.json` names it.
      config: the parameters at full size.
      paper: arXiv id, or authors and year where there is none.
      published: parameters, a tied output layer counted once: all of them from the released
        weights, or the digits that the paper prints ("8.63B").
      where: the place of that figure.
      is_beside_embedding: whether the figure leaves out the embedding table.
    """

    name: str
    architecture: str
    config: ModelConfig
    paper: str
    published: int | str
    where: str
    is_beside_embedding: bool = False

    @property
    def tiny(self) -> ModelConfig:
        """The same options at small widths, for tests: every choice is kept, every size is not."""
        return tiny(self.config)

    def agrees(self, count: int) -> bool:
        """Whether a count of parameters is the published one, to all digits that are printed.

        Papers round some figures and cut others, so a printed one allows less than one unit of its
        last digit to either side.
        """
        if self.is_beside_embedding:
            count -= self.config.vocab_size * self.config.embedding_dim
        if isinstance(self.published, int):
            return count == self.published
        value, unit = printed(self.published)
        return abs(count - value) < unit


def printed(figure: str) -> tuple[float, float]:
    """A printed figure's value, and the unit of its last digit that is not an idle zero.

    Example:
      >>> printed("8.63B")
      (8630000000.0, 10000000.0)
      >>> printed("2,650M")
      (2650000000.0, 10000000.0)
    """
    digits, scale = figure[:-1].replace(",", ""), _UNITS[figure[-1]]
    whole, _, fraction = digits.partition(".")
    idle = 0 if fraction else len(whole) - len(whole.rstrip("0"))
    return float(digits) * scale, scale * 10.0 ** (idle - len(fraction))


def tiny(cfg: ModelConfig) -> ModelConfig:
    """A model with the same options as `cfg` and small widths.

    Patterns over layers go round at least once, windows and the length of a first training are
    shorter than the context, heads keep their kind (each its own keys, groups, or one for all).

    Example:
      >>> small = tiny(ModelConfig(50257, 12288, 96, attention_windows=(None, 256)))
      >>> small.num_layers, small.attention_windows
      (2, (None, 8))
    """
    heads = 4
    kv_heads = {1: 1, cfg.query_heads: heads}.get(cfg.kv_heads, 2)
    head_dim = None if cfg.head_dim is None else 24
    width = head_dim or _TINY_DIM // heads
    windows = tuple(w and _TINY_WINDOW for w in cfg.attention_windows)
    num_layers = min(cfg.num_layers, max(2, len(windows)))
    return cfg.replace(
        vocab_size=_TINY_VOCAB,
        embedding_dim=_TINY_DIM,
        num_layers=num_layers,
        encoder=Encoder(min(cfg.encoder.num_layers, num_layers)),
        context_length=_TINY_LENGTH,
        num_heads=heads,
        num_kv_heads=None if cfg.num_kv_heads is None else kv_heads,
        head_dim=head_dim,
        ffn_dim=None if cfg.ffn_dim is None else 96,
        attention_windows=windows[:num_layers],
        attention_scale=_scaled(cfg.attention_scale, cfg.head_width, width),
        embedding_scale=_like_root(cfg.embedding_scale, cfg.embedding_dim),
        logit_scale=_like_root(cfg.logit_scale, cfg.embedding_dim),
        rope_scaling=_tiny_scaling(cfg.rope_scaling, cfg.rope_width // 2, width),
        latent=_tiny_latent(cfg.latent),
        experts=_tiny_experts(cfg.experts),
    )


def _scaled(scale: float | None, full: int, small: int) -> float | None:
    """Keeps what a scale of scores is against the usual 1 / sqrt(H); 1 is none, as in T5."""
    return scale if scale in (None, 1.0) else scale * math.sqrt(full / small)


def _like_root(scale: float, dim: int) -> float:
    """A scale that is a power of the width (sqrt(D), 1 / sqrt(D)) is the same power here."""
    power = math.log(scale) / math.log(dim)
    return scale if scale == 1.0 else float(_TINY_DIM**power)


def _tiny_scaling(scaling: RopeScaling, pairs: int, width: int) -> RopeScaling:
    if scaling.kind is None:
        return scaling
    keep = max(1, width // 2)

    def few(factors: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(factors[i * pairs // keep] for i in range(keep)) if factors else ()

    return dataclasses.replace(
        scaling,
        original_length=None if scaling.original_length is None else _TINY_LENGTH // 2,
        short_factors=few(scaling.short_factors),
        long_factors=few(scaling.long_factors),
    )


def _tiny_latent(latent: LatentAttention) -> LatentAttention:
    if not latent.kv_rank:
        return latent
    return dataclasses.replace(
        latent,
        kv_rank=32,
        q_rank=None if latent.q_rank is None else 48,
        rope_dim=8,
        value_dim=None if latent.value_dim is None else 16,
    )


def _tiny_experts(experts: Experts) -> Experts:
    if not experts.count:
        return experts
    grouped = experts.groups > 1
    return dataclasses.replace(
        experts,
        count=8,
        per_token=2,
        ffn_dim=None if experts.ffn_dim is None else 48,
        dense_layers=(0,) if experts.dense_layers else (),
        groups=4 if grouped else 1,
        groups_per_token=2 if grouped else 1,
        shared_ffn_dim=48 if experts.shared_ffn_dim else 0,
    )
