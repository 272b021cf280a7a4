"""A comparison as one HTML page that asks for nothing else: styles and plots are in it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from llmasos_jax.evals.metrics.intervals import Interval
from llmasos_jax.evals.report.compare import Comparison, Pair, differing, verdict
from llmasos_jax.evals.report.document import COLOURS, document
from llmasos_jax.evals.tasks.measures import LOWER_IS_BETTER
from llmasos_jax.evals.tasks.result import TaskResult

_WIDTH, _ROW, _LEFT, _RIGHT = 760, 26, 220, 90


def page(comparison: Comparison) -> str:
    """The whole page."""
    title = " and ".join(comparison.systems)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _systems(comparison),
        _table(comparison),
        '<p class="note">Intervals: 95%, bootstrap over examples. p: paired permutation test; it '
        f"counts below {comparison.threshold:.2g}, 0.05 over {len(comparison.pairs)} tests. "
        "Arrows say which way is better.</p>",
    ]
    for task, results in comparison.results.items():
        parts.append(f"<h2>{html.escape(task)}</h2>")
        for (name, metric), found in comparison.intervals.items():
            if name == task:
                parts.append(_plot(metric, comparison.systems, found))
        parts.append(_examples(comparison.systems, results))
    return document(title, [*parts, _repeat(comparison)])


def _systems(comparison: Comparison) -> str:
    rows = "".join(
        f'<tr><td><span class="key" style="background:{_colour(i)}"></span>{chr(65 + i)}</td>'
        f"<td>{html.escape(name)}</td></tr>"
        for i, name in enumerate(comparison.systems)
    )
    return f"<table>{rows}</table>"


def _table(comparison: Comparison) -> str:
    heads = "".join(
        f'<th class="number">{chr(65 + i)}</th>' + (f"<th>{chr(65 + i)} - A</th>" if i else "")
        for i in range(len(comparison.systems))
    )
    tests = {(p.task, p.metric, p.system): p for p in comparison.pairs}
    rows = []
    for (task, metric), found in comparison.intervals.items():
        arrow = "↓" if metric in LOWER_IS_BETTER else "↑"
        cells = ""
        for i, interval in enumerate(found):
            cells += (
                f'<td class="number">{interval.value:.4g}<br><span class="interval">'
                f"{interval.low:.4g} to {interval.high:.4g}</span></td>"
            )
            cells += _test_cell(tests[task, metric, i]) if i else ""
        title = f"{html.escape(task)}<br>{html.escape(metric)} {arrow}"
        rows.append(f"<tr><td>{title}</td>{cells}</tr>")
    return f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def _test_cell(pair: Pair) -> str:
    found = pair.difference
    kind = {None: "", True: "better", False: "worse"}[pair.is_better]
    return (
        f'<td class="{kind}">{found.value:+.4g}, {verdict(pair)}<br><span class="interval">'
        f"{found.low:+.4g} to {found.high:+.4g}, p = {found.p:.3g}</span></td>"
    )


def _plot(metric: str, systems: Sequence[str], found: Sequence[Interval]) -> str:
    """Points with their intervals on one axis, as inline SVG."""
    least, most = min(i.low for i in found), max(i.high for i in found)
    margin = (most - least or abs(most) or 1.0) * 0.08
    low, high = least - margin, most + margin
    span = _WIDTH - _LEFT - _RIGHT
    x_of = lambda value: _LEFT + span * (value - low) / (high - low)
    height = _ROW * (len(found) + 2)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'aria-label="{html.escape(metric)} with intervals">',
        f'<text x="0" y="16" font-weight="bold">{html.escape(metric)}</text>',
    ]
    for i, interval in enumerate(found):
        y = _ROW * (i + 1) + 12
        name = systems[i] if len(systems[i]) <= 26 else f"{systems[i][:25]}…"
        a, b, x = x_of(interval.low), x_of(interval.high), x_of(interval.value)
        parts += [
            f'<text x="0" y="{y + 4}">{chr(65 + i)}  {html.escape(name)}</text>',
            f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{_colour(i)}" '
            'stroke-width="3" stroke-linecap="round"/>',
            f'<circle cx="{x:.1f}" cy="{y}" r="6" fill="{_colour(i)}"/>',
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{y + 4}">{interval.value:.4g}</text>',
        ]
    axis = _ROW * (len(found) + 1) + 4
    parts.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{axis}" y2="{axis}" stroke="currentColor" '
        'stroke-opacity=".4"/>'
    )
    # Values that occur: the axis' own ends may be none that the figure can have.
    for value in dict.fromkeys((least, (least + most) / 2, most)):
        parts.append(
            f'<text x="{x_of(value):.1f}" y="{axis + 16}" text-anchor="middle">{value:.3g}</text>'
        )
    return f"<p>{''.join(parts)}</svg></p>"


def _examples(systems: Sequence[str], results: Sequence[TaskResult]) -> str:
    places = differing(results)
    if not places:
        return '<p class="note">No example was answered better by one than by another.</p>'
    parts = [f"<h3>Examples that differ ({len(places)} of {results[0].num_examples} shown)</h3>"]
    for place in places:
        records = [result.records[place] for result in results]
        prompt = records[0]["prompt"]
        line = html.escape(" ".join(prompt.split())[:110])
        answers = "".join(
            f'<tr><td><span class="key" style="background:{_colour(i)}"></span>{chr(65 + i)}</td>'
            f"<td>{_answer(record)}</td></tr>"
            for i, record in enumerate(records)
        )
        parts.append(
            f"<details><summary>{place}: {line}</summary><pre>{html.escape(prompt)}"
            f"</pre>{_wanted(records[0])}<table>{answers}</table></details>"
        )
    return "\n".join(parts)


def _wanted(record: dict[str, Any]) -> str:
    if "answer" in record:
        return f"<p>right: {html.escape(record['continuations'][record['answer']])}</p>"
    if "references" in record:
        return f"<p>right: {html.escape(' | '.join(record['references']))}</p>"
    return ""


def _answer(record: dict[str, Any]) -> str:
    if "answer" in record:
        kind = "better" if record["predicted"] == record["answer"] else "worse"
        scores = ", ".join(
            f"{html.escape(text.strip()[:60])}: {total:.2f}"
            for text, total in zip(record["continuations"], record["logprobs"], strict=True)
        )
        chosen = html.escape(record["continuations"][record["predicted"]].strip()[:80])
        return f'<span class="{kind}">{chosen}</span><br><span class="interval">{scores}</span>'
    if "text" in record:
        return f"<pre>{html.escape(record['text'])}</pre>"
    return (
        f"{record['nats'] / max(record['tokens'], 1):.4f} nats a token, {record['tokens']} tokens"
    )


def _repeat(comparison: Comparison) -> str:
    rows = []
    for task, results in comparison.results.items():
        for name, result in zip(comparison.systems, results, strict=True):
            signatures = sorted({f.signature for f in result.metrics.values() if f.signature})
            versions = ", ".join(f"{k} {v}" for k, v in result.versions.items())
            settings = ", ".join(f"{k} {v}" for k, v in result.settings.items() if v is not None)
            cells = [
                *(task, name, result.model_hash[:16], result.task_hash[:16], str(result.seed)),
                *(settings, " ".join(signatures), versions),
            ]
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    heads = (
        "task",
        "model",
        "model hash",
        "task hash",
        "seed",
        "settings",
        "signature",
        "versions",
    )
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<h2>To find these again</h2><table class="interval"><tr>{head}</tr>{body}</table>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
