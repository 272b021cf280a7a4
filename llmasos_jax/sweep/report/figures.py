"""Figures as text: as many digits as their intervals leave certain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

_MOST_DECIMALS, _DECIMALS = 6, 4


def decimals_for(half_widths: Iterable[float | None]) -> int:
    """Digits behind the point for a column, so that its middle half-width has two that count.

    Example:
      >>> decimals_for([0.0123, None, 0.5, 0.02]), decimals_for([None]), decimals_for([31.0])
      (3, 4, 0)
    """
    found = sorted(h for h in half_widths if h and math.isfinite(h))
    if not found:
        return _DECIMALS
    return min(max(1 - math.floor(math.log10(found[(len(found) - 1) // 2])), 0), _MOST_DECIMALS)


def with_interval(value: float, half_width: float | None, decimals: int, sign: str = "") -> str:
    """A value and its interval.

    Example:
      >>> with_interval(1.23456, 0.0123, 3), with_interval(0.5, None, 2, "+")
      ('1.235 ± 0.012', '+0.50')
    """
    text = f"{value:{sign}.{decimals}f}"
    return text if half_width is None else f"{text} ± {half_width:.{decimals}f}"


def probability(p: float) -> str:
    """A p for a table.

    Example:
      >>> [probability(p) for p in (1.0, 0.0314, 0.00002)]
      ['1.00', '0.031', '<0.0001']
    """
    if p < 1e-4:
        return "<0.0001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.2g}"


def count(number: float) -> str:
    """A large count, short.

    Example:
      >>> [count(n) for n in (950, 51_200, 2_500_000)]
      ['950', '51.2k', '2.5M']
    """
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.0f}"


def setting_value(value: Any) -> str:
    """A config's value for people.

    Example:
      >>> [setting_value(v) for v in (None, 0.003, "gelu", [2, 4])]
      ['none', '0.003', 'gelu', '2, 4']
    """
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(setting_value, value)) if isinstance(value, list | tuple) else str(value)


def shortened(text: str, most: int) -> str:
    """A text that fits, with what is too long left out in its middle.

    Example:
      >>> shortened("learning_rate=0.003,mlp=gelu", 16)
      'learn…3,mlp=gelu'
    """
    if len(text) <= most:
        return text
    tail = (most - 1) * 2 // 3
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines of a table whose columns stand below each other.

    Args:
      rows: of cells, as many in each.
      right: of each column, whether it is flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
