"""A sweep's report, in memory and in the terminal."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.sweep.report.figures import (
    aligned,
    count,
    decimals_for,
    probability,
    shortened,
    with_interval,
)
from llmasos_jax.sweep.report.outcomes import Outcome, Outcomes, is_lower_better
from llmasos_jax.sweep.report.standings import Standing
from llmasos_jax.sweep.report.statistics import SIGNIFICANT
from llmasos_jax.train.progress import duration

_NAME_WIDTH, _WHY_WIDTH = 64, 100
_STATUSES = ("done", "diverged", "failed", "waiting")


@dataclass(frozen=True)
class SweepReport:
    """What a sweep has come to. It prints as a leaderboard, and so it shows in a notebook.

    Attributes:
      root: the sweep's folder.
      outcomes: of the points.
      rows: the leaderboard, the best first.
    """

    root: Path
    outcomes: Outcomes
    rows: tuple[Standing, ...]

    @property
    def page(self) -> Path:
        """The report to open in a browser."""
        return self.root / "report.html"

    @property
    def best(self) -> Standing | None:
        """The first of the leaderboard; None while no seed is done."""
        return self.rows[0] if self.rows and self.rows[0].rank == 1 else None

    def num(self, status: str) -> int:
        """Points of a status: "done", "diverged", "failed" or "waiting"."""
        return sum(point.status == status for point in self.outcomes.points)

    @property
    def num_failed(self) -> int:
        """Points whose job ended without a result. One that has diverged is not among them."""
        return self.num("failed")

    @property
    def counts(self) -> str:
        """How many points there are, and what became of them."""
        found = Counter(point.status for point in self.outcomes.points)
        parts = [f"{found[status]} {status}" for status in _STATUSES if found[status]]
        total = f"{len(self.outcomes.points)} points"
        seconds = self.outcomes.group_seconds
        took = "" if seconds is None else f"; programs took {duration(seconds)}"
        return f"{total}: {', '.join(parts)}{took}"

    def notes(self) -> list[str]:
        """What one has to know to read the leaderboard."""
        metric, tests = self.outcomes.metric, [row.test for row in self.rows if row.test]
        way = "lower" if is_lower_better(metric) else "higher"
        notes = [f"{metric}: {way} is better; mean over seeds ± 95% interval (Student's t)"]
        done = [point for point in self.outcomes.points if point.status == "done"]
        if done and not any(metric in point.values for point in done):
            known = sorted({name for point in done for name in point.values})
            notes.append(
                f'no finished run has "{metric}", so nothing is ranked; set METRIC in the sweep\'s '
                f"file to one of {', '.join(known)}"
            )
        if self.outcomes.baseline is None:
            notes.append("no baseline, so no tests; add(..., baseline=True) makes one")
        if tests:
            kinds = {"paired": "paired t-test by seed", "welch": "Welch's t-test (other seeds)"}
            used = " or ".join(kinds[kind] for kind in sorted({test.kind for test in tests}))
            notes.append(
                f"p: {used}, two-sided, after Holm over {len(tests)} test"
                f"{'s' if len(tests) > 1 else ''}; it counts below {SIGNIFICANT}. Intervals of "
                "differences are each test's own"
            )
        if any(row.test and row.summary and row.summary.count == 2 for row in self.rows):
            notes.append("two seeds leave a paired test one degree of freedom: give 4 or more")
        if any(row.summary and row.summary.count == 1 for row in self.rows):
            notes.append("one seed has no interval: its luck cannot be told; give seeds=3 or more")
        if any(row.setting.of("diverged") for row in self.rows):
            notes.append(
                "a setting of which a seed diverged has no rank: the mean is of the others alone"
            )
        return notes

    def ended_badly(self) -> list[list[Outcome]]:
        """Points that diverged or failed; together those of which the same is said."""
        found: dict[tuple[str | None, ...], list[Outcome]] = {}
        for point in self.outcomes.points:
            if point.why is not None:
                found.setdefault((point.status, point.why, point.log), []).append(point)
        return list(found.values())

    def table(self) -> list[list[str]]:
        """The leaderboard's cells, the heads first."""
        metric = self.outcomes.metric
        decimals = decimals_for(row.summary.half_width for row in self.rows if row.summary)
        apart = decimals_for(row.test.half_width for row in self.rows if row.test)
        cells = [["", "setting", metric, "seeds", "to baseline", "p", "", "tokens", "time"]]
        for row in self.rows:
            summary, test = row.summary, row.test
            value = summary and with_interval(summary.mean, summary.half_width, decimals)
            difference = test and with_interval(test.difference, test.half_width, apart, "+")
            cells.append(
                [
                    "-" if row.rank is None else str(row.rank),
                    row.setting.name,
                    value or "",
                    f"{len(row.setting.of('done'))}/{len(row.setting.outcomes)}",
                    difference or "",
                    "" if row.p is None else probability(row.p),
                    ", ".join(filter(None, (row.verdict, *_marks(row)))),
                    count(row.tokens) if row.tokens else "",
                    "" if row.seconds is None else duration(row.seconds),
                ]
            )
        return cells

    def __str__(self) -> str:
        cells = self.table()
        short = [shortened(row[1], _NAME_WIDTH) for row in cells]
        if len(set(short)) == len(short):  # else they could not be told apart
            cells = [[row[0], name, *row[2:]] for row, name in zip(cells, short, strict=True)]
        lines = [self.outcomes.question] if self.outcomes.question else []
        lines += [self.counts, ""]
        lines += aligned(cells, (True, False, False, True, False, True, False, True, True))
        lines += ["", *self.notes()]
        for first, *others in self.ended_badly():
            log = f" (log: {self.root / first.log})" if first.log else ""
            why = shortened(" ".join((first.why or "").split()), _WHY_WIDTH)
            more = f" and {len(others)} more" if others else ""
            lines.append(f"{first.status}: {first.name}{more}: {why}{log}")
        return "\n".join([*lines, f"curves and plots: {self.page}"])

    def _repr_html_(self) -> str:
        heads, *rows = self.table()
        cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
        said = "<br>".join(html.escape(line) for line in (self.counts, *self.notes()))
        title = html.escape(self.outcomes.question)
        return f"<p><b>{title}</b></p><table><tr>{cells(heads, 'th')}</tr>{body}</table><p>{said}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, for JSON."""
        outcomes = self.outcomes
        points = []
        for point in outcomes.points:
            values = dataclasses.asdict(point)
            del values["curves"]
            points.append(values)
        return {
            "file": outcomes.file,
            "question": outcomes.question,
            "metric": outcomes.metric,
            "lower_is_better": is_lower_better(outcomes.metric),
            "baseline": outcomes.baseline.name if outcomes.baseline else None,
            "counts": {status: self.num(status) for status in _STATUSES},
            "settings": [_row_dict(row) for row in self.rows],
            "points": points,
            "notes": self.notes(),
        }


def _row_dict(row: Standing) -> dict[str, Any]:
    setting = row.setting
    return {
        "rank": row.rank,
        "setting": setting.name,
        "overrides": dict(setting.overrides),
        "seeds": {"asked": len(setting.outcomes)}
        | {status: len(setting.of(status)) for status in _STATUSES},
        "summary": row.summary and dataclasses.asdict(row.summary),
        "test": row.test and _finite(dataclasses.asdict(row.test)),
        "p_holm": row.p,
        "verdict": row.verdict,
        "tokens": row.tokens,
        "seconds": row.seconds,
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinite t."""
    return {k: None if v in (float("inf"), float("-inf")) else v for k, v in values.items()}


def _marks(row: Standing) -> list[str]:
    """How many of a setting's seeds are missing, and why."""
    found = [(status, len(row.setting.of(status))) for status in _STATUSES[1:]]
    return [f"{number} {status}" for status, number in found if number]
