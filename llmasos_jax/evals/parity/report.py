"""What a comparison came to."""

from __future__ import annotations

import dataclasses
import html
import math
from dataclasses import dataclass
from typing import Any

from llmasos_jax.evals.parity.weights import LeafDifference

_SHOWN = 12


@dataclass(frozen=True)
class PlaceDifference:
    """How far apart two models are at one place.

    Attributes:
      place: "embedding", "layer 0", ..., "final norm", "logits".
      relative: largest difference at a token, as a share of the largest number there.
    """

    place: str
    relative: float


@dataclass(frozen=True)
class Parity:
    """Whether two models are the same, and where and why not. Shows well in a notebook.

    Attributes:
      a, b: what was compared.
      same: whether every place agrees within `tolerance`, and nothing is in `unreached`.
      tolerance: share of the largest number.
      places: in the order in which the models compute them; empty where widths do not fit.
      first: the first place that does not agree; None if all do.
      parts: inside that block, whether "attention" and "mlp" agree on the same input, if known.
      hint: what makes them agree there, and what that means; None if nothing that was tried does.
      tried: the change that makes them agree.
      explains_all: whether the whole models agree with that change.
      options: parameters that differ, `"norm_eps: 1e-05 -> 1e-06"`.
      weights: weights that differ.
      notes: what was not compared.
      unreached: options and weights that differ, but not in what was run; every place agrees then.
    """

    a: str
    b: str
    same: bool
    tolerance: float
    places: tuple[PlaceDifference, ...]
    first: str | None = None
    parts: tuple[PlaceDifference, ...] = ()
    hint: str | None = None
    tried: str | None = None
    explains_all: bool | None = None
    options: tuple[str, ...] = ()
    weights: tuple[LeafDifference, ...] = ()
    notes: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()

    def verdict(self) -> list[str]:
        """The answer in a few lines."""
        if self.same:
            worst = max((p.relative for p in self.places), default=0.0)
            text = f"the same: every place within {worst:.1e} (tolerance {self.tolerance:.0e})"
            return [text]
        if self.unreached:
            return [
                "the same on what was run; these weights or options differ and were not reached: "
                + "; ".join(self.unreached)
            ]
        lines = [f"not the same: they part at {self.first}"]
        if self.parts:
            named = ", ".join(f"{p.place} {_agrees(p, self.tolerance)}" for p in self.parts)
            lines.append(f"in it, on equal input: {named}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        if self.tried:
            then = "the whole models agree" if self.explains_all else "that place agrees"
            lines.append(f"tried: with {self.tried} {then}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All values under their names, for JSON: what is not finite is None."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            if isinstance(value, list | tuple):
                return [plain(v) for v in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        lines = [f"{self.a} | {self.b}", *self.verdict()]
        lines += [f"{p.place:<12} {p.relative:.1e}" for p in self.places]
        lines += [f"option {text}" for text in self.options]
        lines += [f"weight {leaf.name} {leaf.how}" for leaf in self.weights[:_SHOWN]]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        head = "<br>".join(html.escape(line) for line in self.verdict())
        rows = "".join(
            f"<tr><td>{html.escape(p.place)}</td><td>{p.relative:.1e}</td>"
            f"<td>{_agrees(p, self.tolerance)}</td></tr>"
            for p in self.places
        )
        more = [*self.options, *(f"{leaf.name} {leaf.how}" for leaf in self.weights[:_SHOWN])]
        listed = "".join(f"<li>{html.escape(text)}</li>" for text in (*more, *self.notes))
        return f"<p>{head}</p><table>{rows}</table><ul>{listed}</ul>"


def _agrees(place: PlaceDifference, tolerance: float) -> str:
    return "agrees" if place.relative <= tolerance else "differs"
