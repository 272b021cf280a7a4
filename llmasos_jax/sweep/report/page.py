"""A sweep's report as one HTML page that asks for nothing else."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from llmasos_jax.evals.report.document import document
from llmasos_jax.sweep.points import SEED
from llmasos_jax.sweep.report.curves import plot_curves
from llmasos_jax.sweep.report.effects import plot_effect
from llmasos_jax.sweep.report.figures import setting_value
from llmasos_jax.sweep.report.marks import Mark, key, legend, marks_of
from llmasos_jax.sweep.report.report import SweepReport

_LOG_BYTES, _LOG_LINES = 16_384, 30
_STYLE = """
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; font-size: .9em; }
.wide { overflow-x: auto; } td.name { overflow-wrap: anywhere; min-width: 16rem; }
.wide td, .wide th { padding-right: 1.2rem; }
.number, .nowrap { white-space: nowrap; }
.same { opacity: .45; } .failed { color: #c8402a; }
.grid { stroke: var(--line); stroke-width: .5; } .axis { stroke: currentColor; opacity: .5; }
.seed { fill: none; stroke-width: 1; opacity: .4; } .mean { stroke-width: 2.5; }
.other .mean { stroke-width: 1.2; } polyline { fill: none; stroke-linejoin: round; }
.setting:hover .seed { opacity: 1; stroke-width: 2; } .setting:hover .mean { stroke-width: 4; }
.run { stroke: none; opacity: .6; } .diverged { fill: none; stroke-width: 2; }
.effect .mean { fill: Canvas; stroke-width: 2; }
.overall { stroke: currentColor; stroke-width: 2; opacity: .6; }
figure { margin: 1rem 0; display: inline-block; }
"""


def page(report: SweepReport) -> str:
    """The whole page."""
    outcomes, rows = report.outcomes, report.rows
    marks = marks_of(rows)
    title = outcomes.question or f"Sweep {outcomes.file}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">{html.escape(outcomes.file)} in {html.escape(str(report.root))}</p>',
        f"<p>{html.escape(report.counts)}</p>",
        "<h2>Leaderboard</h2>",
        _leaderboard(report, marks),
        f'<p class="note">{"<br>".join(html.escape(line) for line in report.notes())}</p>',
        *_ended_badly(report),
    ]
    plots = [
        (name, plot_curves(name, rows, marks))
        for name in dict.fromkeys((outcomes.metric, "heldout_loss", "loss"))
    ]
    if any(plot for _, plot in plots):
        parts += ["<h2>Learning curves</h2>", legend(rows, marks)]
    parts += [f"<h3>{_title(name)}</h3>{plot}" for name, plot in plots if plot]
    effects = [plot_effect(path, outcomes, rows, marks) for path in outcomes.varied()]
    if any(effects):
        note = (
            "Dot: a run. Ring: the mean of a setting, with its 95% interval as far as it fits. "
            "Level bar: the mean of all settings of a value of which no seed diverged. Cross: a "
            "run that diverged."
        )
        parts += ["<h2>Hyper-parameters</h2>", f'<p class="note">{note}</p>']
        parts += [plot for plot in effects if plot]
    parts += ["<h2>What the settings change</h2>", _differences(report, marks)]
    return document(title, parts, _STYLE)


def _title(name: str) -> str:
    return html.escape({"loss": "training loss"}.get(name, name.replace("heldout_", "held-out ")))


def _leaderboard(report: SweepReport, marks: dict[str, Mark]) -> str:
    heads, *table = report.table()
    classes = ("number", "name", "nowrap", "number", "nowrap", "number", "", "number", "number")
    lines = [_cells("th", heads, classes)]
    for cells, row in zip(table, report.rows, strict=True):
        kinds = [*classes]
        kinds[6] = {True: "better", False: "worse", None: ""}[row.is_better]
        if row.setting.of("diverged") or row.setting.of("failed"):
            kinds[6] = "failed"
        dot = key(marks[row.setting.name])
        lines.append(_cells("td", cells, kinds, dots={0: dot}))
    return _wide(lines)


def _ended_badly(report: SweepReport) -> list[str]:
    """Points that diverged or failed: why, and what their logs end with."""
    found = report.ended_badly()
    parts = ["<h2>Diverged or failed</h2>"] if found else []
    for points in found:
        first = points[0]
        names = "<br>".join(f"{html.escape(p.name)} at step {p.step:,}" for p in points)
        log = ""
        if first.log is not None:
            end = html.escape(_end_of(report.root / first.log))
            log = f"<p>{html.escape(first.log)} ends with:</p><pre>{end}</pre>"
        number = f"{len(points)} point{'s' if len(points) > 1 else ''}"
        parts.append(
            f'<details><summary><span class="failed">{number} {first.status}</span>: '
            f"{html.escape(first.why or '')}</summary><p>{names}</p>{log}</details>"
        )
    return parts


def _end_of(path: Path) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _LOG_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
    return "\n".join(deque(text.splitlines(), _LOG_LINES))


def _differences(report: SweepReport, marks: dict[str, Mark]) -> str:
    """What each setting sets, beside what the base has."""
    outcomes = report.outcomes
    paths = list(dict.fromkeys(path for row in report.rows for path in row.setting.overrides))
    if not paths:
        return "<p>The points change nothing but the seed.</p>"
    base = [setting_value(outcomes.base.get(path)) for path in paths]
    everywhere = ["same"] * (len(paths) + 3)
    lines = [
        _cells("th", ["", "setting", *paths, SEED], [""] * len(everywhere)),
        _cells("td", ["", "base", *base, str(outcomes.base.get(SEED, 0))], everywhere),
    ]
    for row in report.rows:
        values = [setting_value(outcomes.value(row.setting, path)) for path in paths]
        seeds = ", ".join(str(outcome.seed) for outcome in row.setting.outcomes)
        same = ["same" if v == b else "" for v, b in zip(values, base, strict=True)]
        name = row.setting.name
        cells, kinds = ["", name, *values, seeds], ["", "name", *same, ""]
        lines.append(_cells("td", cells, kinds, dots={0: key(marks[name])}))
    return _wide(lines) + '<p class="note">Faint: as in the base.</p>'


def _cells(
    tag: str, cells: Sequence[str], classes: Sequence[str], dots: dict[int, str] | None = None
) -> str:
    """A row; `dots` stand in front of some cells' text, and names may break at their commas."""
    found = []
    for i, cell in enumerate(cells):
        kind = f' class="{classes[i]}"' if classes[i] else ""
        text = html.escape(cell).replace(",", ",<wbr>")
        found.append(f"<{tag}{kind}>{(dots or {}).get(i, '')}{text}</{tag}>")
    return f"<tr>{''.join(found)}</tr>"


def _wide(lines: Sequence[str]) -> str:
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
