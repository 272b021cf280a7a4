"""Learning curves as inline SVG: each seed thin, each setting's mean thick."""

from __future__ import annotations

import html
from collections.abc import Sequence
from statistics import median

from llmasos_jax.sweep.report.axes import Axis, axis_over
from llmasos_jax.sweep.report.figures import count
from llmasos_jax.sweep.report.marks import Mark
from llmasos_jax.sweep.report.outcomes import Curve, Setting, is_lower_better
from llmasos_jax.sweep.report.standings import Standing

WIDTH, HEIGHT = 1080, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 44
_MOST_PLACES, _MOST_PLACES_OF_ALL = 200, 12_000
_MOST_ABOVE_START = 1.3  # of losses: what a run out of control reaches hides all else


def plot_curves(name: str, rows: Sequence[Standing], marks: dict[str, Mark]) -> str | None:
    """One plot of all settings' curves of a value; None where no run has it.

    A setting's mean is drawn over the steps that all its seeds have logged; seeds that diverged are
    drawn, and are not in it. The axis leaves out what only a run out of control reaches.
    """
    curves = {row.setting.name: _curves(row.setting, name) for row in rows}
    flat = [curve for found in curves.values() for curve, _ in found]
    if not flat:
        return None
    x = axis_over([step for c in flat for step, _ in c], _LEFT, WIDTH - _RIGHT, margin=0.01)
    low, high = _range(flat, is_low=is_lower_better(name))
    y = axis_over([low, high], HEIGHT - _BOTTOM, _TOP, margin=0.04)
    is_cut = max(value for curve in flat for _, value in curve) > high
    most = max(min(_MOST_PLACES, _MOST_PLACES_OF_ALL // len(flat)), 20)
    clip = f"clip-{''.join(c if c.isalnum() else '-' for c in name)}"
    parts = [
        f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{html.escape(name)} over steps">',
        f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP}" width="{WIDTH - _LEFT - _RIGHT}" '
        f'height="{HEIGHT - _TOP - _BOTTOM}"/></clipPath>',
        *frame(x, y, "step", y_label=name),
        f'<g clip-path="url(#{clip})">',
    ]
    # The best last: it lies above the others.
    for row in reversed(rows):
        parts += _setting(row.setting, curves[row.setting.name], marks, x, y, most)
    parts.append("</g></svg>")
    cut = " Values above the axis are cut off." if is_cut else ""
    note = f'<p class="note">Thin: a seed. Thick: the mean of a setting.{cut}</p>'
    return f"<p>{''.join(parts)}</p>{note}"


def frame(x: Axis, y: Axis, x_label: str, *, y_label: str, with_x_ticks: bool = True) -> list[str]:
    """Lines, ticks and names of a plot's axes."""
    parts = []
    for value in y.ticks():
        at = y.place(value)
        parts.append(
            f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at}" y2="{at}"/>'
            f'<text x="{x.start - 8}" y="{at + 4}" text-anchor="end">{value:.4g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>'
        f'<text x="{(x.start + x.end) / 2}" y="{y.start + 38}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
        f'<text x="14" y="{(y.start + y.end) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(y.start + y.end) / 2})">{html.escape(y_label)}</text>'
    )
    for value in x.ticks(10) if with_x_ticks else ():
        text = count(value) if value >= 1000 else f"{value:g}"
        parts.append(x_tick(x.place(value), y.start, text))
    return parts


def x_tick(at: float, bottom: float, text: str) -> str:
    """A value below the x axis."""
    return f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{html.escape(text)}</text>'


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean at each step that all curves have.

    Example:
      >>> mean_curve([((1, 2.0), (2, 1.0)), ((2, 3.0), (3, 9.0))])
      ((2, 2.0),)
    """
    tables = [dict(curve) for curve in curves]
    shared = set(tables[0]).intersection(*tables[1:])
    return tuple((step, sum(t[step] for t in tables) / len(tables)) for step in sorted(shared))


def thinned(curve: Curve, most: int) -> Curve:
    """Every n-th place of a curve, and its last."""
    every = -(-len(curve) // most)
    kept = curve[::every]
    return kept if kept[-1] == curve[-1] else (*kept, curve[-1])


def _curves(setting: Setting, name: str) -> list[tuple[Curve, int]]:
    """Those that a setting's seeds have, with the seed's place in the setting."""
    found = [(outcome.curves.get(name, ()), i) for i, outcome in enumerate(setting.outcomes)]
    return [(curve, i) for curve, i in found if curve]


def _setting(
    setting: Setting,
    curves: Sequence[tuple[Curve, int]],
    marks: dict[str, Mark],
    x: Axis,
    y: Axis,
    most: int,
) -> list[str]:
    mark = marks[setting.name]
    dashes = ' stroke-dasharray="6 4"' if mark.is_baseline else ""
    kind = "setting" if mark.is_named else "setting other"
    parts = [f'<g class="{kind}" stroke="{mark.colour}"{dashes}>']
    for curve, i in curves:
        outcome = setting.outcomes[i]
        title = f"{outcome.name}: {curve[-1][1]:.5g} at step {curve[-1][0]:,}, {outcome.status}"
        parts.append(_line(thinned(curve, most), x, y, "seed", title))
    sound = [curve for curve, i in curves if setting.outcomes[i].status != "diverged"]
    mean = mean_curve(sound) if sound else ()
    if mean:
        title = f"{setting.name}: mean {mean[-1][1]:.5g} at step {mean[-1][0]:,}"
        parts.append(_line(thinned(mean, most), x, y, "mean", title))
    return [*parts, "</g>"]


def _line(curve: Curve, x: Axis, y: Axis, kind: str, title: str) -> str:
    titled = f"<title>{html.escape(title)}</title>"
    if len(curve) == 1:
        at, up = x.place(curve[0][0]), y.place(curve[0][1])
        return f'<circle class="{kind}" cx="{at}" cy="{up}" r="3">{titled}</circle>'
    places = " ".join(f"{x.place(step):g},{y.place(value):g}" for step, value in curve)
    return f'<polyline class="{kind}" points="{places}">{titled}</polyline>'


def _range(curves: Sequence[Curve], *, is_low: bool) -> tuple[float, float]:
    """From the lowest value to the highest; of losses not far above where they begin."""
    low = min(value for curve in curves for _, value in curve)
    high = max(value for curve in curves for _, value in curve)
    if not is_low:
        return low, high
    usual = max(*(curve[0][1] for curve in curves), median(curve[-1][1] for curve in curves))
    return low, min(high, low + _MOST_ABOVE_START * (usual - low))
