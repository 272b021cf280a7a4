"""Pictures of a plan: memory by part and time by part, as SVG, HTML and PNG.

One list of shapes serves all: SVG needs no plotting package, and PNG only Pillow (extra `plot`).
"""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmasos_jax.errors import MissingExtraError
from llmasos_jax.plan.figures import Figures
from llmasos_jax.plan.roofline import Roofline

WIDTH, BAR, LEFT = 760, 26, 150
_GIB = 1 << 30
_INK, _PALE, _LINE = "#1f2933", "#66727f", "#c62828"
# Told apart by people who see fewer colours (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#999999")


class Pictured(Protocol):
    """What is drawn of a `report.Plan`, which says what its attributes are."""

    @property
    def name(self) -> str:
        """Of the run."""
        ...

    @property
    def topology(self) -> str:
        """Of the pod."""
        ...

    @property
    def available(self) -> int:
        """Bytes of one device."""
        ...

    @property
    def fits(self) -> bool:
        """Whether the step does."""
        ...

    @property
    def figures(self) -> Figures:
        """All that compiling gave."""
        ...

    @property
    def roofline(self) -> Roofline | None:
        """Times of a step."""
        ...


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Text:
    """A line of text; `y` is its middle."""

    x: float
    y: float
    text: str
    colour: str = _INK
    size: int = 13
    anchor: str = "start"


@dataclass(frozen=True)
class Drawing:
    """Shapes on white.

    Attributes:
      height: in pixels; the width is `WIDTH`.
      shapes: in the order in which they are drawn.
    """

    height: int
    shapes: tuple[Box | Text, ...]


def draw(plan: Pictured) -> Drawing:
    """Memory by part against what the chip has; then time by part against the lower bound."""
    title = f"{plan.name} on {plan.topology}"
    shapes: list[Box | Text] = [Text(16, 22, title, size=16)]
    y = _memory(plan, shapes, 56)
    if plan.roofline is not None:
        y = _time(plan, shapes, y + 20)
    return Drawing(int(y + 8), tuple(shapes))


def _memory(plan: Pictured, shapes: list[Box | Text], y: float) -> float:
    state, memory, trouble = plan.figures.state, plan.figures.memory, plan.figures.out_of_memory
    parts = [("parameters", state.parameters), ("optimizer", state.optimizer)]
    if memory is not None:
        given = memory.argument - state.parameters - state.optimizer
        parts += [("batch, padding", max(0, given))]
        parts += [("temporaries at the peak", max(0, memory.peak - memory.argument))]
    elif trouble is not None:
        needed = trouble.needed
        if trouble.what != "temporaries":
            needed -= state.parameters + state.optimizer
        parts += [("temporaries", max(0, needed))]
    total = sum(size for _, size in parts)
    fits = "fits" if plan.fits else "does not fit"
    text = f"memory of a device, GiB: {total / _GIB:.2f} of {plan.available / _GIB:.2f}, {fits}"
    shapes.append(Text(16, y, text))
    scale = (WIDTH - 32) / max(total, plan.available)
    x, y = 16.0, y + 14
    shapes.append(Box(x, y, plan.available * scale, BAR, "#eef1f4"))
    for (_, size), colour in zip(parts, _COLOURS, strict=False):
        shapes.append(Box(x, y, size * scale, BAR, colour))
        x += size * scale
    limit = 16 + plan.available * scale
    shapes.append(Box(limit - 1, y - 4, 2, BAR + 8, _LINE))
    y += BAR + 20
    x = 16.0
    for (name, size), colour in zip(parts, _COLOURS, strict=False):
        label = f"{name} {size / _GIB:.2f}"
        shapes += [Box(x, y - 5, 10, 10, colour), Text(x + 15, y, label, _PALE, 12)]
        x += 30 + 6.8 * len(label)
    return y + 20


def _time(plan: Pictured, shapes: list[Box | Text], y: float) -> float:
    line = plan.roofline
    if line is None:
        return y
    shapes.append(Text(16, y, f"least time of a step, by part: at least {_seconds(line.bound_s)}"))
    rows = [(name, s, _COLOURS[0]) for name, s in line.parts.items() if s or name != "network"]
    rows = [(n, s, _COLOURS[3] if n == line.bound_by else c) for n, s, c in rows]
    if line.cycles_s is not None:
        rows.append(("compiler's cycles", line.cycles_s, "#c3cad1"))
    scale = (WIDTH - LEFT - 110) / max(s for _, s, _ in rows)
    y += 14
    top = y
    bound = LEFT + line.bound_s * scale
    for name, seconds, colour in rows:
        label, x = _seconds(seconds), LEFT + seconds * scale + 8
        if x < bound + 8 and x + 6.8 * len(label) > bound:
            x = bound + 8  # beyond the line, which would go through it
        shapes += [
            Text(LEFT - 8, y + BAR / 2, name, anchor="end"),
            Box(LEFT, y + 3, max(1.0, seconds * scale), BAR - 6, colour),
            Text(x, y + BAR / 2, label, _PALE, 12),
        ]
        y += BAR
    shapes.append(Box(bound - 1, top, 2, y - top, _LINE))
    note = "red: the lower bound"
    if line.cycles_s is not None:
        note += "; cycles, without kernels and collectives, are not in it"
    shapes.append(Text(LEFT, y + 12, note, _PALE, 12))
    return y + 28


def to_svg(drawing: Drawing) -> str:
    """A drawing as one SVG element."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{drawing.height}" '
        f'viewBox="0 0 {WIDTH} {drawing.height}" font-family="sans-serif">'
        f'<rect width="{WIDTH}" height="{drawing.height}" fill="#ffffff"/>'
    ]
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            parts.append(
                f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" '
                f'height="{shape.height:.1f}" fill="{shape.colour}"/>'
            )
        else:
            parts.append(
                f'<text x="{shape.x:.1f}" y="{shape.y + shape.size * 0.35:.1f}" '
                f'font-size="{shape.size}" fill="{shape.colour}" text-anchor="{shape.anchor}">'
                f"{html.escape(shape.text)}</text>"
            )
    return "".join([*parts, "</svg>"])


def to_html(plan: Pictured) -> str:
    """One page with the pictures and the figures, that needs no other file."""
    title = html.escape(f"{plan.name} on {plan.topology}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<body style="font-family:sans-serif;margin:24px;max-width:900px">'
        f'{to_svg(draw(plan))}<pre style="font-size:13px;overflow-x:auto">'
        f"{html.escape(str(plan))}</pre></body></html>\n"
    )


def to_png(drawing: Drawing, scale: int = 2) -> bytes:
    """A drawing as a PNG file, `scale` pixels for one.

    Raises:
      MissingExtraError: Pillow is not here.
    """
    try:
        from PIL import Image, ImageColor, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingExtraError(
            "a PNG needs Pillow, plan.html does not; pip install 'llmasos-jax[plot]' brings it"
        ) from error
    image = Image.new("RGB", (WIDTH * scale, drawing.height * scale), "white")
    canvas = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            corner = (shape.x + shape.width, shape.y + shape.height)
            ends = [round(v * scale) for v in (shape.x, shape.y, *corner)]
            ends = [*ends[:2], max(ends[0], ends[2] - 1), max(ends[1], ends[3] - 1)]
            canvas.rectangle(ends, fill=ImageColor.getrgb(shape.colour))
        else:
            font = ImageFont.load_default(shape.size * scale)
            anchor = {"start": "lm", "end": "rm"}[shape.anchor]
            place = (shape.x * scale, shape.y * scale)
            canvas.text(place, shape.text, shape.colour, font, anchor)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_pictures(plan: Pictured, folder: Path) -> list[Path]:
    """Writes `plan.html`, and `plan.png` where Pillow is here.

    Returns:
      What was written.

    Raises:
      OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "plan.html"
    page.write_text(to_html(plan), encoding="utf-8")
    written = [page]
    try:
        png = to_png(draw(plan))
    except MissingExtraError:
        return written
    image = folder / "plan.png"
    image.write_bytes(png)
    return [*written, image]


def _seconds(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.1e} s"
