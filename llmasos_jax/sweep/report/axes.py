"""Axes of plots: where a value lies, and which values are written beside the axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LOG_FROM_FACTOR = 20


@dataclass(frozen=True)
class Axis:
    """Values on a line.

    Attributes:
      low, high: the values at its ends.
      start, end: where these lie, in pixels.
      is_log: whether equal factors are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, in pixels; beyond the ends for one beyond the ends.

        Example:
          >>> Axis(0.001, 1.0, 0, 300, is_log=True).place(0.01)
          100.0
        """
        of = math.log10 if self.is_log else float
        low, high = of(self.low), of(self.high)
        share = (of(value) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis."""
        if not self.is_log:
            return _round_values(self.low, self.high, most)
        lowest, highest = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        tens = [10.0**e for e in range(lowest, highest + 1)]
        tens = [value for value in tens if self.low <= value <= self.high]
        if len(tens) >= 3:
            return tens[:: math.ceil(len(tens) / most)]
        found = [m * 10.0**e for e in range(lowest, highest + 1) for m in (1, 2, 5)]
        return [value for value in found if self.low <= value <= self.high]


def is_log_scale(values: Sequence[float]) -> bool:
    """Whether factors say more of values than differences: all are above 0, far apart.

    Example:
      >>> is_log_scale([1e-4, 1e-2]), is_log_scale([0.0, 0.1]), is_log_scale([2, 8])
      (True, False, False)
    """
    return min(values) > 0 and max(values) > _LOG_FROM_FACTOR * min(values)


def axis_over(
    values: Sequence[float], start: float, end: float, *, is_log: bool = False, margin: float = 0.06
) -> Axis:
    """An axis on which all values have a place, and a margin on both sides."""
    low, high = min(values), max(values)
    if is_log:
        wider = (high / low) ** margin if high > low else 2.0
        return Axis(low / wider, high * wider, start, end, is_log=True)
    wider = (high - low) * margin or abs(high) * margin or 1.0
    return Axis(low - wider, high + wider, start, end)


def _round_values(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
