"""What each hyper-parameter does, as inline SVG: its values, and what runs with them came to."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmasos_jax.sweep.report.axes import Axis, axis_over, is_log_scale
from llmasos_jax.sweep.report.curves import frame, x_tick
from llmasos_jax.sweep.report.figures import setting_value, shortened
from llmasos_jax.sweep.report.marks import Mark
from llmasos_jax.sweep.report.outcomes import Outcomes
from llmasos_jax.sweep.report.standings import Standing
from llmasos_jax.sweep.report.statistics import Summary

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 16, 24, 48
_MOST_CATEGORIES, _LABEL_WIDTH, _MOST_SPREAD, _BESIDE = 12, 18, 16.0, 9.0


@dataclass(frozen=True)
class Places:
    """Where the values of a hyper-parameter lie.

    Attributes:
      axis: the line; of categories their numbers from 0.
      labels: what is written below it: place in pixels, text.
      by_text: pixels of each value, by `repr`.
      room: pixels that the marks of one value may take to each side.
    """

    axis: Axis
    labels: tuple[tuple[float, str], ...]
    by_text: dict[str, float]
    room: float


def plot_effect(
    path: str, outcomes: Outcomes, rows: Sequence[Standing], marks: dict[str, Mark]
) -> str | None:
    """One plot of a hyper-parameter; None where no seed is done.

    A dot is a run, a ring with its bar a setting's mean with its 95% interval, a level bar the mean
    of all settings with that value of which no seed diverged, a cross above a run that diverged.
    """
    metric = outcomes.metric
    runs = [v for row in rows for v in row.setting.values(metric).values()]
    if not runs:
        return None
    spread = max(runs) - min(runs)
    ends = [end for row in rows if row.summary for end in _ends(row.summary, spread)]
    y = axis_over([*runs, *ends], _HEIGHT - _BOTTOM, _TOP)
    at = places_of([outcomes.value(row.setting, path) for row in rows])
    shared: dict[str, list[Standing]] = {}
    for row in rows:
        shared.setdefault(repr(outcomes.value(row.setting, path)), []).append(row)
    parts = [
        f'<svg class="effect" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'aria-label="{html.escape(f"{metric} against {path}")}">',
        *frame(at.axis, y, path, y_label=metric, with_x_ticks=False),
        *(x_tick(place, _HEIGHT - _BOTTOM, label) for place, label in at.labels),
    ]
    for text, found in shared.items():
        # Side by side, so that settings of one value do not hide each other.
        gap = min(_MOST_SPREAD, 2 * at.room / len(found))
        first = at.by_text[text] - gap * (len(found) - 1) / 2
        sound = [row for row in found if not row.setting.of("diverged")]
        means = [row.summary.mean for row in sound if row.summary]
        if len(means) > 1:
            parts.append(_overall(at.by_text[text], gap * len(found) / 2, y, means))
        for i, row in enumerate(found):
            mark, place = marks[row.setting.name], first + i * gap
            parts.append(_setting(row, mark, place, min(gap / 2, _BESIDE), y, metric))
    return f"<figure>{''.join(parts)}</svg></figure>"


def places_of(values: Sequence[Any]) -> Places:
    """Lays out a hyper-parameter's values.

    Numbers above 0 of which the largest is more than 20 times the smallest have a logarithmic
    scale. Other numbers have a plain one if there are many; a few stand as categories, in order, as
    do texts.
    """
    known = {repr(value): value for value in values}
    start, end = _LEFT, _WIDTH - _RIGHT
    numbers = [v for v in known.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    are_numbers = len(numbers) == len(known)
    is_log = are_numbers and is_log_scale(numbers)
    if are_numbers and (is_log or len(known) > _MOST_CATEGORIES):
        axis = axis_over(numbers, start, end, is_log=is_log)
        by_text = {text: axis.place(value) for text, value in known.items()}
        few = len(known) <= _MOST_CATEGORIES
        shown = sorted(numbers) if few else axis.ticks()
        apart = sorted(by_text.values())
        nearest = min((b - a for a, b in zip(apart, apart[1:], strict=False)), default=end - start)
        labels = _without_overlap([(axis.place(value), f"{value:g}") for value in shown])
        return Places(axis, labels, by_text, 0.35 * nearest)
    ordered = sorted(known, key=lambda text: known[text]) if are_numbers else list(known)
    axis = Axis(-0.5, len(ordered) - 0.5, start, end)
    by_text = {text: axis.place(i) for i, text in enumerate(ordered)}
    width = max(min(_LABEL_WIDTH, (end - start) // (8 * len(ordered))), 4)
    labels = _without_overlap(
        [(by_text[text], shortened(setting_value(known[text]), width)) for text in ordered]
    )
    return Places(axis, labels, by_text, 0.35 * (end - start) / len(ordered))


def _without_overlap(labels: list[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Leaves out labels that would stand on the one before."""
    kept: list[tuple[float, str]] = []
    for place, text in sorted(labels):
        if not kept or place - kept[-1][0] >= 4 * (len(text) + len(kept[-1][1])) + 8:
            kept.append((place, text))
    return tuple(kept)


def _ends(summary: Summary, spread: float) -> tuple[float, float]:
    """The interval's, as far as they are drawn: two seeds may have one that is 10 times as wide."""
    width = min(summary.half_width or 0.0, spread)
    return summary.mean - width, summary.mean + width


def _overall(middle: float, half: float, y: Axis, means: Sequence[float]) -> str:
    mean = sum(means) / len(means)
    at, half = y.place(mean), max(half, 8) + 6
    title = f"mean of {len(means)} settings: {mean:.5g}"
    return (
        f'<line class="overall" x1="{middle - half:.1f}" x2="{middle + half:.1f}" y1="{at}" '
        f'y2="{at}"><title>{title}</title></line>'
    )


def _setting(row: Standing, mark: Mark, at: float, beside: float, y: Axis, metric: str) -> str:
    """Its marks: runs stand to the right of their mean, so that neither hides the other."""
    setting, summary = row.setting, row.summary
    colour, at, runs = mark.colour, round(at, 1), round(at + beside, 1)
    parts = [f'<g class="setting" stroke="{colour}" fill="{colour}">']
    for i, outcome in enumerate(setting.of("diverged")):
        parts.append(
            f'<path class="diverged" d="M{at - 4} {6 + 10 * i}l8 8m0 -8l-8 8">'
            f"<title>{html.escape(f'{outcome.name}: {outcome.why}')}</title></path>"
        )
    for outcome in setting.of("done"):
        value = outcome.values.get(metric)
        if value is not None:
            title = html.escape(f"{outcome.name}: {value:.5g}")
            parts.append(
                f'<circle class="run" cx="{runs}" cy="{y.place(value)}" r="3">'
                f"<title>{title}</title></circle>"
            )
    if summary is not None and summary.half_width is not None:
        low = min(y.place(summary.mean - summary.half_width), y.start)
        high = max(y.place(summary.mean + summary.half_width), y.end)
        title = f"{setting.name}: {summary.mean:.5g} ± {summary.half_width:.2g}"
        parts.append(
            f'<line x1="{at}" x2="{at}" y1="{low}" y2="{high}" stroke-width="2"/>'
            f'<circle class="mean" cx="{at}" cy="{y.place(summary.mean)}" r="5">'
            f"<title>{html.escape(title)}</title></circle>"
        )
    return "".join([*parts, "</g>"])
