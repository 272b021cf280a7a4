"""How rotary positions are stretched past the length that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_finite, require_one_of, require_positive
from llmasos_jax.errors import ConfigError

ROPE_SCALINGS = (None, "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeScaling:
    """Stretches rotary positions past the length that a model was trained on.

    Attributes:
      kind: None, "linear" (positions divided by `factor`; Chen et al., 2023, arXiv 2306.15595),
        "llama3" (Llama Team, 2024, arXiv 2407.21783, as in its released code), "yarn" (Peng et
        al., 2023, arXiv 2309.00071) or "longrope" (Ding et al., 2024, arXiv 2402.13753).
      factor: how much longer the new context is.
      original_length: context of the first training, in tokens ("llama3", "yarn", "longrope").
      low_frequency, high_frequency: bounds of the blend, in turns over `original_length`
        ("llama3").
      beta_fast, beta_slow: bounds of the blend, in turns over `original_length` ("yarn").
      attention_factor: multiplies sine and cosine ("yarn", "longrope"); None means
        0.1 ln(factor) + 1 for "yarn" and sqrt(1 + ln(factor) / ln(original_length)) for
        "longrope".
      short_factors, long_factors: one divisor per rotated pair ("longrope"): the short ones for
        sequences of up to `original_length` tokens, the long ones for longer sequences. In writing,
        a prompt's length chooses for its tokens, its own position for each token after; the keys
        of tokens before keep the rotation that they had.
    """

    kind: str | None = None
    factor: float = 1.0
    original_length: int | None = None
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


def check_rope_scaling(scaling: RopeScaling, theta: float, pairs: int) -> None:
    """Raises ConfigError for the first field that breaks a rule.

    Args:
      scaling: what to check.
      theta: base of the frequencies that it scales.
      pairs: rotated pairs in a head, R / 2.
    """
    path = "model.rope_scaling"
    require_finite(path, scaling)
    require_one_of(f"{path}.kind", scaling.kind, ROPE_SCALINGS)
    if scaling.kind is not None:
        require_positive(f"{path}.factor", scaling.factor)
    elif scaling.factor != 1.0:
        raise ConfigError(
            f"{path}.factor={scaling.factor} without a kind scales nothing; set {path}.kind to "
            "one of " + ", ".join(f'"{kind}"' for kind in ROPE_SCALINGS[1:])
        )
    if scaling.kind in ("llama3", "yarn", "longrope") and not scaling.original_length:
        raise ConfigError(
            f'{path}.kind="{scaling.kind}" needs '
            "rope_scaling.original_length, the context length of the first training in tokens"
        )
    if scaling.kind == "longrope" and scaling.original_length == 1:
        raise ConfigError(
            f"{path}.original_length=1 must be above 1: its logarithm divides the factor's"
        )
    if scaling.kind == "llama3" and scaling.high_frequency <= scaling.low_frequency:
        raise ConfigError(
            f"{path}.high_frequency={scaling.high_frequency} must be above "
            f"low_frequency={scaling.low_frequency}: the blend lies between them"
        )
    if scaling.kind == "yarn" and theta <= 1:
        raise ConfigError(f"model.rope_theta={theta} must be above 1 for yarn scaling")
    for name in ("short_factors", "long_factors"):
        factors = getattr(scaling, name)
        wanted = pairs if scaling.kind == "longrope" else 0
        if len(factors) != wanted:
            raise ConfigError(
                f"{path}.{name} has {len(factors)} numbers, must have {wanted}: one per rotated "
                'pair with kind="longrope", else none'
            )
        for factor in factors:
            require_positive(f"{path}.{name}", factor)
