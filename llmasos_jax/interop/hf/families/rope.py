"""Rotary positions as `config.json` writes them, in the older and the newer spelling.

older: "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, ...}
newer: "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, ...}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmasos_jax.config.model import ModelConfig, RopeScaling
from llmasos_jax.errors import FormatError
from llmasos_jax.interop.hf.config import Keys


@dataclass(frozen=True)
class Rope:
    """What `config.json` says of rotary positions.

    Attributes:
      theta: base of the frequencies.
      scaling: ours.
      fraction: share of each head that is rotated.
      score_factor: what DeepSeek multiplies the attention's scores by (1.0 elsewhere).
    """

    theta: float
    scaling: RopeScaling = field(default_factory=RopeScaling)
    fraction: float = 1.0
    score_factor: float = 1.0

    @property
    def fields(self) -> dict[str, Any]:
        """As fields of a ModelConfig."""
        return {
            "rope_theta": self.theta,
            "rope_scaling": self.scaling,
            "rope_fraction": self.fraction,
        }


def read_rope(
    keys: Keys,
    *,
    context: int,
    theta: float = 10000.0,
    fraction: float = 1.0,
    has_fraction: bool = False,
    original: int | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Rope:
    """Reads both spellings.

    Args:
      keys: of the whole file.
      context: `max_position_embeddings`, in tokens.
      theta: where the file has none.
      fraction: where the file has none and `has_fraction`.
      has_fraction: whether the family rotates a part of each head.
      original: `original_max_position_embeddings` where the family has a default for it.
      aliases: names of kinds of scaling that stand for others in this family.

    Raises:
      FormatError: it asks for something that is not computed here.
    """
    older, newer = keys.group("rope_scaling"), keys.group("rope_parameters")
    if older is not None and newer is not None:
        raise keys.error("rope_scaling", 'stands beside "rope_parameters"; one of them is right')
    theta = keys.number("rope_theta", theta)
    if has_fraction:
        fraction = keys.number("partial_rotary_factor", fraction)
    else:
        keys.only("partial_rotary_factor", 1.0, 1, why="this family rotates whole heads")
    original = keys.integer("original_max_position_embeddings", original)
    group = older or newer
    if group is None:
        return Rope(theta, fraction=fraction)
    return read_rope_group(
        group,
        context=context,
        theta=theta,
        fraction=fraction,
        has_fraction=has_fraction,
        original=original,
        aliases=aliases,
    )


def read_rope_group(
    group: Keys,
    *,
    context: int,
    theta: float,
    fraction: float = 1.0,
    has_fraction: bool = False,
    original: int | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Rope:
    """Reads the nested object of either spelling, to its end; arguments as in `read_rope`."""
    theta = group.number("rope_theta", theta)
    if has_fraction:
        fraction = group.number("partial_rotary_factor", fraction)
    else:
        group.only("partial_rotary_factor", 1.0, 1, why="this family rotates whole heads")
    key = "type" if "rope_type" not in group else "rope_type"
    kind = group.text(key, "default")
    group.text("type", kind)
    kind = (aliases or {}).get(kind, kind)
    if kind not in _KINDS:
        raise group.error(key, f"is not computed here; known: {', '.join(_KINDS)}")
    asked = group.integer("original_max_position_embeddings", None)
    length: int = original or asked or context
    scaling, score_factor = _KINDS[kind](group, context, length)
    group.finish()
    return Rope(theta, scaling, fraction, score_factor)


def _default(keys: Keys, context: int, original: int) -> tuple[RopeScaling, float]:
    keys.inert("factor", why="the kind has no factor")
    return RopeScaling(), 1.0


def _linear(keys: Keys, context: int, original: int) -> tuple[RopeScaling, float]:
    return RopeScaling("linear", factor=keys.number("factor")), 1.0


def _llama3(keys: Keys, context: int, original: int) -> tuple[RopeScaling, float]:
    scaling = RopeScaling(
        "llama3",
        factor=keys.number("factor"),
        original_length=original,
        low_frequency=keys.number("low_freq_factor"),
        high_frequency=keys.number("high_freq_factor"),
    )
    return scaling, 1.0


def _yarn(keys: Keys, context: int, original: int) -> tuple[RopeScaling, float]:
    factor = keys.number("factor", null=True)
    factor = _stretch(keys, context, original) if factor is None else factor
    multiplier = keys.number("attention_factor", None)
    mscale, all_dim = keys.number("mscale", None), keys.number("mscale_all_dim", None)
    if multiplier is None and mscale and all_dim:
        multiplier = _mscale(factor, mscale) / _mscale(factor, all_dim)
    keys.only("truncate", True, why="bounds of the blend are whole numbers here")
    scaling = RopeScaling(
        "yarn",
        factor=factor,
        original_length=original,
        beta_fast=keys.number("beta_fast", None) or 32.0,
        beta_slow=keys.number("beta_slow", None) or 1.0,
        attention_factor=multiplier,
    )
    return scaling, _mscale(factor, all_dim) ** 2 if all_dim else 1.0


def _stretch(keys: Keys, context: int, original: int) -> float:
    """The factor that the two lengths give."""
    if original > context:
        raise FormatError(
            f'{keys.where}: "original_max_position_embeddings" = {original} is above '
            f'"max_position_embeddings" = {context}; the model reads no fewer tokens than it was '
            "trained on, so one of them is wrong"
        )
    return context / original


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(keys: Keys, context: int, original: int) -> tuple[RopeScaling, float]:
    factor = keys.number("factor", None)
    factor = _stretch(keys, context, original) if factor is None else factor
    multiplier = keys.number("attention_factor", None)
    scaling = RopeScaling(
        "longrope",
        factor=factor,
        original_length=original,
        attention_factor=1.0 if multiplier is None and factor <= 1 else multiplier,
        short_factors=tuple(float(v) for v in keys.listed("short_factor", (int, float), ())),
        long_factors=tuple(float(v) for v in keys.listed("long_factor", (int, float), ())),
    )
    return scaling, 1.0


_KINDS = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def write_rope(cfg: ModelConfig, all_dim: float | None = None) -> dict[str, Any]:
    """The older spelling of a model's rotary positions, which every version of transformers reads.

    Args:
      cfg: the model.
      all_dim: DeepSeek's `mscale_all_dim`, which is in no field of ours.
    """
    scaling = cfg.rope_scaling
    said: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        said["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        said["low_freq_factor"] = scaling.low_frequency
        said["high_freq_factor"] = scaling.high_frequency
    elif scaling.kind == "yarn":
        said["beta_fast"], said["beta_slow"] = scaling.beta_fast, scaling.beta_slow
        if all_dim is not None:
            said["mscale_all_dim"] = all_dim
    elif scaling.kind == "longrope":
        said["short_factor"] = list(scaling.short_factors)
        said["long_factor"] = list(scaling.long_factors)
    if scaling.attention_factor is not None:
        said["attention_factor"] = scaling.attention_factor
    known = scaling.kind in _KINDS  # "none" is not
    return {"rope_theta": cfg.rope_theta, "rope_scaling": said if known else None}


def all_dim_of(cfg: ModelConfig) -> float | None:
    """DeepSeek's `mscale_all_dim`, from what multiplies the attention's scores."""
    factor, scale = cfg.rope_scaling.factor, cfg.attention_scale
    if cfg.rope_scaling.kind != "yarn" or scale is None or factor <= 1:
        return None
    usual = cfg.head_width**-0.5
    exact = (math.sqrt(max(scale / usual, 0.0)) - 1.0) / (0.1 * math.log(factor))
    for digits in (3, 6, 9):  # what people write, if it is that
        if usual * _mscale(factor, round(exact, digits)) ** 2 == scale:
            return round(exact, digits)
    return exact
