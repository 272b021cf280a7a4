"""How far a figure can be trusted: bootstrap intervals, and tests between two systems.

Every metric here is a function of sums over examples, so a sample of examples is a weighted sum of
their rows: a thousand samples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError

# Rows of samples that are drawn at a time, so that they fit in memory whatever their number.
_AT_ONCE = 128
Finish = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Interval:
    """A figure and where it lies.

    Attributes:
      value: of all examples.
      low, high: the interval, at `level`.
      level: 0.95 is 95%.
      samples: drawn.
    """

    value: float
    low: float
    high: float
    level: float
    samples: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Difference:
    """System B less system A, on the same examples.

    Attributes:
      value: the difference.
      low, high: its bootstrap interval, at `level`.
      p: probability of one so large, either way, were there none.
      level: of the interval.
      samples: drawn.
    """

    value: float
    low: float
    high: float
    p: float
    level: float
    samples: int

    def __str__(self) -> str:
        return f"{self.value:+.4g} [{self.low:+.4g}, {self.high:+.4g}], p = {self.p:.3g}"


def mean(sums: np.ndarray) -> float:
    """The mean, of the sums of values and of ones."""
    return float(sums[0] / sums[1])


def bootstrap(
    rows: Any,
    finish: Finish | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of a metric (Efron and Tibshirani, 1993).

    Args:
      rows: what each example adds: numbers [N], whose mean it is, or [N, K] with `finish`.
      finish: the metric of the sums [K].
      samples: of N examples each, drawn with repetition.
      level: of the interval.
      seed: of the draws.

    Raises:
      EvaluationError: no example, or an argument out of range.

    Example:
      >>> found = bootstrap([1, 0, 1, 1] * 25)
      >>> found.value, 0.6 < found.low < 0.75 < found.high < 0.9
      (0.75, True)
    """
    rows_nk, finish = _rows(rows, finish, samples, level)
    values = _resampled([rows_nk], lambda sums: finish(sums[0]), samples, seed)
    low, high = _ends(values, level)
    return Interval(finish(rows_nk.sum(0)), low, high, level, samples)


def paired_bootstrap(
    a: Any,
    b: Any,
    finish: Finish | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """B less A, both on the same samples of examples (Koehn, 2004).

    Args:
      a: rows of the first system, as in `bootstrap`.
      b: rows of the second one, of the same examples in the same order.
      finish: as in `bootstrap`.
      samples: of the examples.
      level: of the interval.
      seed: of the draws.

    Returns:
      The difference; `p` is the share of samples whose difference is as far from the whole one as
      that is from 0, (1 + hits) / (1 + samples).

    Raises:
      EvaluationError: other examples in one than in the other, or an argument out of range.

    Example:
      >>> found = paired_bootstrap([0, 0, 1, 0] * 25, [1, 1, 1, 0] * 25)
      >>> found.value, found.p < 0.01
      (0.5, True)
    """
    return _paired(*_two(a, b, finish, samples, level), samples, level, seed)


def _paired(
    a_nk: np.ndarray, b_nk: np.ndarray, finish: Finish, samples: int, level: float, seed: int
) -> Difference:
    whole = finish(b_nk.sum(0)) - finish(a_nk.sum(0))
    apart = lambda sums: finish(sums[1]) - finish(sums[0])
    values = _resampled([a_nk, b_nk], apart, samples, seed)
    low, high = _ends(values, level)
    hits = int((np.abs(values - whole) >= _as_far(whole, finish, a_nk, b_nk)).sum())
    return Difference(whole, low, high, (1 + hits) / (1 + samples), level, samples)


def permutation(
    a: Any,
    b: Any,
    finish: Finish | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """B less A, with the paired randomisation test (Noreen, 1989).

    Were both systems one, each example could as well be the other's: in each sample every example
    is exchanged by a coin, and `p` is the share of samples with a difference as large as the real
    one, (1 + hits) / (1 + samples). The interval is that of `paired_bootstrap`.

    Args:
      a: rows of the first system, as in `bootstrap`.
      b: rows of the second one, of the same examples in the same order.
      finish: as in `bootstrap`.
      samples: of coins.
      level: of the interval.
      seed: of the draws.

    Raises:
      EvaluationError: other examples in one than in the other, or an argument out of range.

    Example:
      >>> permutation([0, 1] * 20, [1, 0] * 20).p
      1.0
    """
    a_nk, b_nk, finish = _two(a, b, finish, samples, level)
    interval = _paired(a_nk, b_nk, finish, samples, level, seed)
    rng = np.random.default_rng(seed)
    a_k, b_k, step_nk = a_nk.sum(0), b_nk.sum(0), b_nk - a_nk
    hits, far = 0, _as_far(interval.value, finish, a_nk, b_nk)
    for first in range(0, samples, _AT_ONCE):
        size = min(_AT_ONCE, samples - first)
        moved_mk = rng.integers(0, 2, (size, len(a_nk))).astype(np.float64) @ step_nk
        for moved_k in moved_mk:
            apart = finish(b_k - moved_k) - finish(a_k + moved_k)
            hits += abs(apart) >= far
    p = (1 + int(hits)) / (1 + samples)
    return Difference(interval.value, interval.low, interval.high, p, level, samples)


def _as_far(value: float, finish: Finish, a_nk: np.ndarray, b_nk: np.ndarray) -> float:
    """From where on a difference is as large as `value`: with equal ones, whatever rounding did.

    What rounding does depends on the size of the figures themselves; a tie that is missed would
    make p too small.
    """
    size = abs(finish(a_nk.sum(0))) + abs(finish(b_nk.sum(0)))
    return abs(value) * (1 - 1e-9) - 1e-12 * size


def _resampled(
    systems: list[np.ndarray], finish: Callable[[list[np.ndarray]], float], samples: int, seed: int
) -> np.ndarray:
    rng, num = np.random.default_rng(seed), len(systems[0])
    values = []
    for first in range(0, samples, _AT_ONCE):
        size = min(_AT_ONCE, samples - first)
        counts_mn = rng.multinomial(num, np.full(num, 1 / num), size).astype(np.float64)
        sums = [counts_mn @ rows_nk for rows_nk in systems]
        values += [finish([sums_mk[i] for sums_mk in sums]) for i in range(size)]
    return np.array(values)


def _ends(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _rows(
    rows: Any, finish: Finish | None, samples: int, level: float
) -> tuple[np.ndarray, Finish]:
    if not isinstance(samples, int) or samples < 1:
        raise EvaluationError(f"samples={samples!r} is not possible; give a whole number above 0")
    if not 0 < level < 1:
        raise EvaluationError(f"level={level!r} is not possible; 0.95 is an interval of 95%")
    array = np.asarray(rows, np.float64)
    if array.ndim != (1 if finish is None else 2):
        raise EvaluationError(
            f"rows are {list(array.shape)}; give a number for each example, or with finish= a row "
            "of numbers for each"
        )
    if not len(array):
        raise EvaluationError("there are no examples to draw from; give at least one")
    if finish is None:
        return np.stack([array, np.ones_like(array)], axis=1), mean
    return array, finish


def _two(
    a: Any, b: Any, finish: Finish | None, samples: int, level: float
) -> tuple[np.ndarray, np.ndarray, Finish]:
    (a_nk, done), (b_nk, _) = (_rows(x, finish, samples, level) for x in (a, b))
    if a_nk.shape != b_nk.shape:
        raise EvaluationError(
            f"A has {len(a_nk)} examples and B {len(b_nk)}; a paired test needs the same ones"
        )
    return a_nk, b_nk, done
