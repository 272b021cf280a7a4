"""How settings look on the page: the best have colours, the others are grey."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos_jax.evals.report.document import COLOURS
from llmasos_jax.sweep.report.figures import shortened
from llmasos_jax.sweep.report.standings import Standing

_GREY, _BASELINE = "#8888", "currentColor"
_LABEL_WIDTH = 60


@dataclass(frozen=True)
class Mark:
    """A setting's look.

    Attributes:
      colour: of its lines and dots.
      is_named: whether the legend has it.
      is_baseline: which is dashed.
    """

    colour: str
    is_named: bool
    is_baseline: bool


def marks_of(rows: Sequence[Standing]) -> dict[str, Mark]:
    """Of each setting by name: the ten best, and the baseline, are told apart."""
    found, colours = {}, iter(COLOURS)
    for row in rows:
        if row.setting.is_baseline:
            found[row.setting.name] = Mark(_BASELINE, True, True)
        else:
            colour = next(colours, _GREY)
            found[row.setting.name] = Mark(colour, colour != _GREY, False)
    return found


def legend(rows: Sequence[Standing], marks: dict[str, Mark]) -> str:
    """Names beside their colours, the best first."""
    named = [row for row in rows if marks[row.setting.name].is_named]
    parts = []
    for row in named:
        name = row.setting.name
        said = " (baseline, dashed)" if row.setting.is_baseline else ""
        parts.append(
            f'<span title="{html.escape(name)}">{key(marks[name])}'
            f"{html.escape(shortened(name, _LABEL_WIDTH))}{said}</span>"
        )
    others = len(rows) - len(named)
    if others:
        grey = Mark(_GREY, False, False)
        parts.append(f"<span>{key(grey)}{others} other setting{'s' if others > 1 else ''}</span>")
    return f'<p class="legend">{"".join(parts)}</p>'


def key(mark: Mark) -> str:
    """A dot of the colour."""
    return f'<span class="key" style="background:{mark.colour}"></span>'
