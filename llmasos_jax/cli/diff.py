"""Lists the leaves in which two checkpoints, or two models, differ.

Two checkpoints are compared in all that a run goes on from (weights, optimizer, keys, step), two
models in their weights. Needs no accelerator and compiles nothing. Exit status 1 says that they
differ.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos_jax.cli.options import add_json, note, print_json

if TYPE_CHECKING:
    from llmasos_jax.checkpoint.compare import Difference, LeafDifference, Stored

DIFFERENT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos diff`."""
    for name in ("a", "b"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help="a training folder (its newest checkpoint), a step's folder, or a model",
        )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compares, and says what differs."""
    from llmasos_jax.checkpoint.compare import compare

    found = compare(*_sides(args.a, args.b))
    if args.json:
        print_json(asdict(found) | {"is_same": found.is_same})
    else:
        print(_text(found))
    return 0 if found.is_same else DIFFERENT


def _sides(a: str, b: str) -> list[dict[str, Stored]]:
    from llmasos_jax.checkpoint.compare import Stored, stored_leaves
    from llmasos_jax.checkpoint.stored import StoredState
    from llmasos_jax.hub.open import kind_of, open_model

    if all(Path(side).exists() and kind_of(Path(side)) == "training" for side in (a, b)):
        states = [StoredState(side) for side in (a, b)]
        for state in states:
            _note_damage(state.folder)
        return [stored_leaves(state) for state in states]
    for side in (a, b):
        # What is nowhere is said first: beside a model a run may be read as one, or not.
        if not Path(side).exists():
            open_model(side)
    # One of them a model: both as models, whose tensors have the same names everywhere.
    return [
        {
            name: Stored(str(tensor), lambda tensor=tensor: iter([tensor.read()]))
            for name, tensor in open_model(side).tensors.items()
        }
        for side in (a, b)
    ]


def _note_damage(folder: Path) -> None:
    """Damage is no reason not to compare, which shows what it did."""
    from llmasos_jax.checkpoint import manifest
    from llmasos_jax.errors import DamagedCheckpointError

    try:
        manifest.require_sound(folder)
    except DamagedCheckpointError as error:
        note(f"note: {error}")


def _text(found: Difference) -> str:
    if found.is_same:
        return f"the same: {found.same} leaves, bit for bit"
    lines = [_line(leaf) for leaf in found.different]
    for side, only in (("A", found.only_a), ("B", found.only_b)):
        lines += [f"{name}: only in {side}, {kind}" for name, kind in only.items()]
    only_a, only_b = len(found.only_a), len(found.only_b)
    lines.append(
        f"{found.same} leaves are the same, {len(found.different)} differ, {only_a} only in A, "
        f"{only_b} only in B"
    )
    return "\n".join(lines)


def _line(leaf: LeafDifference) -> str:
    if leaf.max_abs is None:
        return f"{leaf.name}: {leaf.a} in A, {leaf.b} in B"
    if leaf.count is None:
        return f"{leaf.name}: {leaf.a} in A, {leaf.b} in B, apart by at most {leaf.max_abs:.3g}"
    share = f"{leaf.count:,} of {leaf.total:,} numbers"
    return f"{leaf.name}: {leaf.a}, {share} differ by at most {leaf.max_abs:.3g}"
