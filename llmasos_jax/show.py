"""Results that show themselves: a small table in a notebook, aligned lines in a terminal."""

from __future__ import annotations

import dataclasses
import html
from typing import Any


class Shown:
    """Base of result dataclasses. Fields that are None, or named `_so`, stay hidden."""

    def __str__(self) -> str:
        rows = self._rows()
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._rows()
        )
        return f"<table><caption>{type(self).__name__}</caption>{cells}</table>"

    def to_dict(self) -> dict[str, Any]:
        """The shown fields as values that `json.dump` takes (paths become text)."""
        return {
            field.name: value
            if isinstance(value, bool | int | float | str | list | dict)
            else str(value)
            for field, value in self._values()
        }

    def _values(self) -> list[tuple[dataclasses.Field[Any], Any]]:
        return [
            (field, getattr(self, field.name))
            for field in dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
            if not field.name.startswith("_") and getattr(self, field.name) is not None
        ]

    def _rows(self) -> list[tuple[str, str]]:
        return [(f.name.replace("_", " "), _text(value)) for f, value in self._values()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
