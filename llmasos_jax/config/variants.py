"""The variants of a config file: what stands after the colon in `--config=name:variant`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from llmasos_jax.errors import ConfigError, did_you_mean

T = TypeVar("T")


def variant_of(variant: str, table: Mapping[str, T]) -> T:
    """What a config's table has for a variant; the first row where none is given.

    Raises:
      ConfigError: no such variant, with the nearest.

    Example:
      >>> variant_of("", {"v5e:2x4": 8, "v5e:16x16": 1024})
      8
    """
    if not variant:
        return next(iter(table.values()))
    if variant not in table:
        raise ConfigError(f'no variant "{variant}"{did_you_mean(variant, list(table))}')
    return table[variant]
