"""Says whether two models are the same, and if not, where they part and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmasos_jax.cli.options import add_allow_code, add_ignore, add_json, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from llmasos_jax.evals.parity.report import Parity, PlaceDifference

NOT_THE_SAME = 1
_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos parity`."""
    for name in ("a", "b"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help="whatever can be loaded, or transformers:FOLDER (needs the extra parity)",
        )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="in the longest row; default past every window"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="share of the largest number at a place; default 1e-4, more where types differ",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the ids; default 0")
    add_ignore(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compares, prints what was found, and answers with the exit status.

    Returns:
      0 if the models are the same; 1 if they are not, or if they agree on what was run but
      differ in weights or options that it did not reach.
    """
    from rich.console import Console

    from llmasos_jax import api

    with Console(stderr=True).status("") as status:
        found = api.parity(
            args.a,
            args.b,
            tokens=args.tokens,
            tolerance=args.tolerance,
            seed=args.seed,
            allow_code=args.allow_code,
            ignore=args.ignore,
            tick=lambda text: status.update(f"comparing: {text}"),
        )
    if args.json:
        print_json(found.to_dict())
    else:
        show(found, Console(highlight=False))
    return 0 if found.same else NOT_THE_SAME


def show(found: Parity, console: Console) -> None:
    """Prints a comparison for people: the verdict, the places, what differs."""
    from rich.table import Table

    console.print(f"A  {found.a}\nB  {found.b}\n", markup=False)
    if found.places:
        table = Table(box=None, pad_edge=False)
        table.add_column("place")
        table.add_column("difference", justify="right")
        table.add_column("")
        for place in _worth_showing(found):
            if place is None:
                table.add_row("...", "", "")
                continue
            agrees = place.relative <= found.tolerance
            mark = "first" if place.place == found.first else "" if agrees else "differs"
            table.add_row(
                place.place,
                f"{place.relative:.1e}" if place.relative else "0",
                mark,
                style=None if agrees else "red",
            )
        console.print(table)
        console.print()
    for text in found.verdict():
        console.print(text, markup=False, style="bold" if text.startswith("hint") else None)
    _list(console, "options that differ (A -> B)", found.options)
    _list(console, "weights of B that differ", [f"{w.name} {w.how}" for w in found.weights])
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


def _worth_showing(found: Parity) -> list[PlaceDifference | None]:
    """All places of a small model; of a deep one the ends and those around the first difference."""
    if len(found.places) <= 2 * _SHOWN:
        return list(found.places)
    first = next((i for i, p in enumerate(found.places) if p.place == found.first), 0)
    last = len(found.places) - 1
    kept = {0, 1, 2, *range(first - 2, first + 3), *range(last - 2, last + 1)}
    rows: list[PlaceDifference | None] = []
    for i, place in enumerate(found.places):
        if i in kept:
            rows.append(place)
        elif rows[-1] is not None:
            rows.append(None)
    return rows


def _list(console: Console, title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    console.print(f"\n{title}", markup=False)
    for line in lines[:_SHOWN]:
        console.print(f"  {line}", markup=False)
    if len(lines) > _SHOWN:
        console.print(f"  and {len(lines) - _SHOWN} more", markup=False)
