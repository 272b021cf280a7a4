"""Checks that config dataclasses share: each names the field, the value and the rule."""

from __future__ import annotations

import math

from llmasos_jax.errors import ConfigError, did_you_mean


def require_finite(path: str, group: object) -> None:
    """Raises ConfigError if a field of the dataclass `group` is NaN or infinite."""
    for name, value in vars(group).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}.{name}={value} must be a finite number")


def require_positive(path: str, value: float) -> None:
    """Raises ConfigError unless `value` is above zero."""
    if value <= 0:
        raise ConfigError(f"{path}={value} must be above 0")


def require_one_of(path: str, value: object, known: tuple[object, ...]) -> None:
    """Raises ConfigError unless `value` is one of `known`."""
    if value not in known:
        hint = did_you_mean(str(value), [str(k) for k in known])
        raise ConfigError(f"{path}={value!r} is not known{hint}")
