"""The leaderboard's rows: settings in the order of their means, tested against the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmasos_jax.sweep.report.outcomes import Outcomes, Setting, is_lower_better
from llmasos_jax.sweep.report.statistics import SIGNIFICANT, Summary, Test, compare, holm, summarize


@dataclass(frozen=True)
class Standing:
    """A setting's place.

    Attributes:
      setting: whose it is.
      rank: from 1; None where no seed is done, or one has diverged.
      summary: of the metric over the seeds that are done; None if there is none.
      test: against the baseline; None where `untested` says why there is none.
      p: of the test, by Holm's method over all tests of the sweep.
      is_better: whether it is better than the baseline; None where the test does not say.
      untested: why there is no test; "" for the baseline, where there is one, and where seeds that
        diverged or are not done are the reason.
    """

    setting: Setting
    rank: int | None
    summary: Summary | None
    test: Test | None = None
    p: float | None = None
    is_better: bool | None = None
    untested: str = ""

    @property
    def verdict(self) -> str:
        """What the comparison says, in a few words."""
        if self.setting.is_baseline:
            return "baseline"
        if self.test is None:
            return self.untested
        return {None: "no difference shown", True: "better", False: "worse"}[self.is_better]

    @property
    def tokens(self) -> int:
        """That all its seeds have read."""
        return sum(outcome.tokens for outcome in self.setting.outcomes)

    @property
    def seconds(self) -> float | None:
        """That its finished seeds took; those of a group share its time in equal parts."""
        found = [o.seconds for o in self.setting.outcomes if o.seconds is not None]
        return sum(found) if found else None


def standings(outcomes: Outcomes) -> list[Standing]:
    """Settings from the best to the worst.

    A setting of which a seed has diverged stands behind all that have none, without a rank and a
    test: the mean of the seeds that were lucky says nothing of the setting. A seed that failed, or
    is not done yet, is only missing.
    """
    low = is_lower_better(outcomes.metric)
    rows = [_row(outcomes, setting) for setting in outcomes.settings]

    def order(row: Standing) -> tuple[bool, bool, float]:
        value = 0.0 if row.summary is None else row.summary.mean * (1 if low else -1)
        return bool(row.setting.of("diverged")), row.summary is None, value

    rows = _tested(sorted(rows, key=order), is_low=low)
    ranked = [row for row in rows if row.summary and not row.setting.of("diverged")]
    return [replace(row, rank=ranked.index(row) + 1 if row in ranked else None) for row in rows]


def _row(outcomes: Outcomes, setting: Setting) -> Standing:
    metric, baseline = outcomes.metric, outcomes.baseline
    values = setting.values(metric)
    summary = summarize(list(values.values())) if values else None
    if setting.is_baseline:
        return Standing(setting, None, summary)
    why = ""
    if baseline is None:
        why = "no baseline"
    elif setting.of("diverged") or not setting.of("done"):
        why = ""  # its counts say it
    elif baseline.of("diverged"):
        why = "the baseline diverged"
    elif not values:
        why = f"no {metric}"
    elif len(values) == 1:
        why = "one seed: no test"
    elif len(baseline.values(metric)) < 2:
        why = f"baseline has {len(baseline.values(metric))} done: no test"
    is_tested = baseline is not None and not why and not setting.of("diverged")
    test = compare(values, baseline.values(metric)) if baseline and is_tested else None
    return Standing(setting, None, summary, test, untested=why)


def _tested(rows: Sequence[Standing], *, is_low: bool) -> list[Standing]:
    """The rows with their p adjusted for the number of tests, and what follows."""
    adjusted = iter(holm([row.test.p for row in rows if row.test is not None]))
    found = []
    for row in rows:
        if row.test is not None:
            p = next(adjusted)
            is_better = (row.test.difference < 0) == is_low if p < SIGNIFICANT else None
            row = replace(row, p=p, is_better=is_better)
        found.append(row)
    return found
