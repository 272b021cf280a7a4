"""Means over seeds, their intervals, and tests of one setting against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.special import stdtr, stdtrit

LEVEL = 0.95
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Summary:
    """Of one setting's seeds.

    Attributes:
      count: seeds.
      mean: over them.
      deviation: standard deviation of a seed, with n - 1; None for one seed.
      half_width: of the mean's 95% interval, mean ± half_width; None for one seed.
    """

    count: int
    mean: float
    deviation: float | None
    half_width: float | None


@dataclass(frozen=True)
class Test:
    """A difference of two means, and whether seeds alone may have made it.

    Attributes:
      kind: "paired" by seed, or "welch".
      difference: of the means, the setting less the baseline.
      half_width: of the difference's 95% interval.
      t: Student's.
      degrees: of freedom.
      p: two-sided, of this test alone.
    """

    kind: Literal["paired", "welch"]
    difference: float
    half_width: float
    t: float
    degrees: float
    p: float


def summarize(values: Sequence[float]) -> Summary:
    """Mean of seeds and its Student t interval, mean ± t(0.975, n - 1) s / sqrt(n).

    Args:
      values: one a seed, at least one.

    Example:
      >>> found = summarize([1.0, 2.0, 3.0])
      >>> found.mean, found.deviation, round(found.half_width, 4)
      (2.0, 1.0, 2.4841)
      >>> summarize([1.0])
      Summary(count=1, mean=1.0, deviation=None, half_width=None)
    """
    count, mean = len(values), fmean(values)
    if count == 1:
        return Summary(count, mean, None, None)
    deviation = stdev(values)
    return Summary(count, mean, deviation, _quantile(count - 1) * deviation / math.sqrt(count))


def compare(setting: Mapping[int, float], baseline: Mapping[int, float]) -> Test | None:
    """Tests whether a setting differs from the baseline by more than its seeds do.

    The seed is all that is random in a run here: it draws the first weights and the dropout masks;
    data, their order and the machine are the same. Where both have the same seeds, run i of one and
    run i of the other therefore share that draw (where shapes agree: the very same weights), and
    the paired t-test, on the differences of each seed, is valid; what a lucky draw adds to both
    falls out of it. That makes it the stronger test whenever the seeds' effects go together. Where
    they do not, it is still valid, and costs degrees of freedom: n - 1 in place of up to 2n - 2.
    With other seeds on each side it is Welch's t-test, which takes no equal variances for granted
    (Welch, 1947, "The generalization of Student's problem when several different population
    variances are involved").

    Which of them it is depends on the seeds alone, never on the values.

    Args:
      setting: values by seed, of one metric.
      baseline: the same of the other side.

    Returns:
      None where one side has fewer than two seeds: there is nothing to tell their spread by.
    """
    if min(len(setting), len(baseline)) < 2:
        return None
    if setting.keys() == baseline.keys():
        return paired([setting[s] for s in setting], [baseline[s] for s in setting])
    return welch(list(setting.values()), list(baseline.values()))


def paired(a: Sequence[float], b: Sequence[float]) -> Test:
    """Student's t-test of a's mean less b's, pair by pair.

    Args:
      a: values of two seeds at least.
      b: of the same seeds in the same order.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences))
    return _test("paired", fmean(differences), error, len(differences) - 1)


def welch(a: Sequence[float], b: Sequence[float]) -> Test:
    """Welch's t-test of a's mean less b's.

    Args:
      a: two values at least.
      b: as many or not, two at least.
    """
    of_a, of_b = stdev(a) ** 2 / len(a), stdev(b) ** 2 / len(b)
    both = of_a + of_b
    # Welch and Satterthwaite. Without any spread any number of degrees says the same.
    parts = of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1)
    degrees = both**2 / parts if parts else float(len(a) + len(b) - 2)
    return _test("welch", fmean(a) - fmean(b), math.sqrt(both), degrees)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p, which bound the chance that any of several tests errs.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j for j <= i, and 1 at most.

    References:
      Holm, 1979, "A simple sequentially rejective multiple test procedure".

    Example:
      >>> holm([0.04, 0.01, 0.03])
      [0.06, 0.03, 0.06]
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


def _test(
    kind: Literal["paired", "welch"], difference: float, error: float, degrees: float
) -> Test:
    if error:
        t = difference / error
    else:  # no spread at all: either nothing differs, or all does by the same
        t = math.copysign(math.inf, difference) if difference else 0.0
    p = 2 * float(stdtr(degrees, -abs(t)))
    return Test(kind, difference, _quantile(degrees) * error, t, degrees, p)


def _quantile(degrees: float) -> float:
    return float(stdtrit(degrees, (1 + LEVEL) / 2))
