"""Plots as SVG elements: text, so that no plotting library is needed and any page takes them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

_CELL, _FONT = 18, 11


def color(value: float, low: float, high: float) -> str:
    """A colour: white to blue from 0 up, white to red from 0 down; grey for what is no number.

    Example:
      >>> color(1.0, 0.0, 1.0), color(0.0, -1.0, 1.0), color(float("nan"), 0.0, 1.0)
      ('rgb(20,80,180)', 'rgb(255,255,255)', 'rgb(220,220,220)')
    """
    if not np.isfinite(value):
        return "rgb(220,220,220)"
    most = max(abs(low), abs(high)) or 1.0
    share = min(1.0, abs(value) / most)
    full = (20, 80, 180) if value >= 0 else (190, 40, 30)
    return "rgb({},{},{})".format(*(round(255 + share * (part - 255)) for part in full))


def heatmap_svg(
    values: np.ndarray, rows: Sequence[str], cols: Sequence[str], title: str = ""
) -> str:
    """A matrix as coloured cells, each with its value under the pointer.

    Args:
      values: [R, C].
      rows: R names.
      cols: C names.
      title: above it.

    Example:
      >>> heatmap_svg(np.eye(2), ["a", "b"], ["c", "d"]).count("<rect")
      4
    """
    num_rows, num_cols = np.shape(values)
    left = 12 + 7 * max((len(name) for name in rows), default=0)
    top = 30 + 7 * max((len(name) for name in cols), default=0)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    parts = [_text(title, 4, 14)]
    for i, name in enumerate(rows):
        parts.append(_text(name, left - 4, top + _CELL * i + 13, "end"))
    for j, name in enumerate(cols):
        x = left + _CELL * j + 12
        parts.append(_text(name, x, top - 4, turn=f' transform="rotate(-90 {x} {top - 4})"'))
    for i, j in np.ndindex(num_rows, num_cols):
        x, y = left + _CELL * j, top + _CELL * i
        tip = escape(f"{rows[i]}, {cols[j]}: {values[i, j]:.4g}")
        fill = color(float(values[i, j]), low, high)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{fill}">'
            f"<title>{tip}</title></rect>"
        )
    return _svg(parts, left + _CELL * num_cols + 8, top + _CELL * num_rows + 8)


def bars_svg(values: Sequence[float] | np.ndarray, names: Sequence[str], title: str = "") -> str:
    """Numbers as bars from a common zero, one below the other.

    Example:
      >>> bars_svg([1.0, -2.0], ["a", "b"]).count("<rect")
      2
    """
    array = np.asarray(values, np.float64)
    left = 12 + 7 * max((len(name) for name in names), default=0)
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    scale = 240 / ((high - low) or 1.0)
    zero = left - low * scale
    parts = [_text(title, 4, 14)]
    for i, (name, value) in enumerate(zip(names, array, strict=True)):
        y = 24 + _CELL * i
        width = abs(value) * scale
        x = zero if value >= 0 else zero - width
        parts.append(_text(name, left - 4, y + 13, "end"))
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{_CELL - 4}" '
            f'fill="{color(value, low, high)}" stroke="#888"><title>{value:.4g}</title></rect>'
        )
        parts.append(_text(f"{value:.3g}", left + 248, y + 13))
    return _svg(parts, left + 310, 32 + _CELL * len(array))


def _text(text: str, x: float, y: float, anchor: str = "start", turn: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="monospace" font-size="{_FONT}">'
    )
    return "".join((head, *parts, "</svg>"))
