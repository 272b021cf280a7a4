"""What a GGUF file says of rotary positions, as `RopeScaling`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.gguf.keys import Keys

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_CLOSE = 2e-6  # relative; factors are float32, computed in float32


def read_scaling(
    keys: Keys, tensors: Mapping[str, StoredTensor], theta: float, width: int, context: int
) -> RopeScaling:
    """How rotary positions are stretched.

    Args:
      keys: the metadata.
      tensors: of the file; factors are small tensors, which are read here.
      theta: base of the frequencies.
      width: rotated numbers of a head.
      context: the model's context length, in tokens.

    Raises:
      FormatError: what the file says is not known, or contradicts itself.
    """
    # Files of before August 2023 have the factor alone, and mean a linear one.
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    original = keys.integer("rope.scaling.original_context_length", context)
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    long = _factors(keys, tensors, LONG, width)
    short = _factors(keys, tensors, SHORT, width)
    freqs = _factors(keys, tensors, FREQS, width)
    if (long is None) != (short is None) or (freqs is not None and long is not None):
        raise keys.error(f"of {LONG}, {SHORT} and {FREQS} the first two go together, or the last")
    if kind == "yarn" and freqs is None and long is None:
        return _yarn(keys, factor, original, attention)
    if long is not None and short is not None and (kind == "longrope" or factor == 1.0):
        return _longrope(short, long, attention, original, context)
    if attention != 1.0:
        raise keys.error(f"{keys.arch}.rope.scaling.attn_factor goes with yarn and longrope only")
    is_plain = kind == "none" or (kind == "linear" and factor == 1.0)
    if freqs is not None and is_plain:
        return _of_freqs(freqs, theta, context)
    if freqs is not None or long is not None or kind not in ("none", "linear"):
        raise keys.error(
            f'{keys.arch}.rope.scaling.type = "{kind}" is not read with these tensors of factors; '
            'read are "none", "linear", "yarn", "longrope"'
        )
    return RopeScaling() if is_plain else RopeScaling("linear", factor)


def _factors(
    keys: Keys, tensors: Mapping[str, StoredTensor], name: str, width: int
) -> np.ndarray | None:
    if name not in tensors:
        return None
    tensor = tensors[name]
    if tensor.shape != (width // 2,) or tensor.dtype != "float32":
        raise keys.error(
            f"{name} is {tensor}, must be float32[{width // 2}]: one per rotated pair of a head"
        )
    factors = tensor.read()
    if not np.all(np.isfinite(factors)) or not np.all(factors > 0):
        raise keys.error(f"{name} must hold numbers above 0")
    return factors


def _yarn(keys: Keys, factor: float, original: int, attention: float) -> RopeScaling:
    keys.must_be("rope.scaling.yarn_ext_factor", 1.0, -1.0, why="no published model has another")
    if factor < 1.0:
        raise keys.error(f"{keys.arch}.rope.scaling.factor = {factor} must be at least 1")
    default = 0.1 * math.log(factor) + 1.0
    # The converter copies OLMo 3's multiplier, which is the default; of others programs disagree
    # whether they take its place or multiply it. 1 and -1 stand for none.
    given = keys.number("rope.scaling.yarn_attn_factor", 1.0)
    if given not in (1.0, -1.0) and not math.isclose(given, default, rel_tol=1e-4):
        raise keys.error(
            f"{keys.arch}.rope.scaling.yarn_attn_factor = {given} is not read; only "
            f"0.1 ln(factor) + 1 = {default:.6g} is, which is what is computed without it"
        )
    return RopeScaling(
        "yarn",
        factor,
        original_length=original,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=None if attention == 1.0 else attention * default,
    )


def _longrope(
    short: np.ndarray, long: np.ndarray, attention: float, original: int, context: int
) -> RopeScaling:
    factor = max(context / original, 1.0)
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if original > 1 else 1.0
    return RopeScaling(
        "longrope",
        factor,
        original_length=original,
        # The file holds the float32 of `default`; the double is what the model was published with.
        attention_factor=None if math.isclose(attention, default, rel_tol=1e-6) else attention,
        short_factors=_decimals(short),
        long_factors=_decimals(long),
    )


def _of_freqs(freqs: np.ndarray, theta: float, context: int) -> RopeScaling:
    """Llama 3.1's scaling, which files hold as the divisor of each frequency.

    Its four numbers are found again where they are those of the published models; other divisors
    are kept as they are, which is the same to the last bit but one.
    """
    if np.all(freqs == 1.0):
        return RopeScaling()
    llama3 = RopeScaling("llama3", float(str(freqs.max())), original_length=8192)
    if llama3.factor > 1.0 and np.allclose(
        llama3_divisors(llama3, theta, 2 * len(freqs)), freqs, rtol=_CLOSE, atol=0
    ):
        return llama3
    factors = _decimals(freqs)
    return RopeScaling(
        "longrope",
        original_length=context,
        attention_factor=1.0,
        short_factors=factors,
        long_factors=factors,
    )


def llama3_divisors(scaling: RopeScaling, theta: float, width: int) -> np.ndarray:
    """What `kind="llama3"` divides each frequency by, float64 [width / 2].

    Example:
      >>> llama3_divisors(RopeScaling("llama3", 8.0, original_length=8192), 5e5, 128)[[0, 63]]
      array([1., 8.])
    """
    inverse = theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    turns = (scaling.original_length or 0) * inverse / (2 * math.pi)
    low, high = scaling.low_frequency, scaling.high_frequency
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - share) / scaling.factor + share)


def _decimals(factors: np.ndarray) -> tuple[float, ...]:
    """The shortest decimals that are these float32 numbers, as a config has them."""
    return tuple(float(str(factor)) for factor in factors)
