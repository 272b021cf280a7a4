"""Examines checkpoints: reads every file and every leaf, and compares them with what was written.

Needs no accelerator, compiles nothing, changes nothing. Exit status 1 says that something is
damaged.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmasos_jax.cli.options import add_json, print_json

if TYPE_CHECKING:
    from llmasos_jax.checkpoint.doctor import Report, StepReport

DAMAGED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos doctor`."""
    parser.add_argument(
        "path", metavar="PATH", help="a training folder, its checkpoints, or one step's folder"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Examines, and says what was found."""
    from llmasos_jax.checkpoint.doctor import examine

    found = examine(args.path)
    if args.json:
        print_json(asdict(found) | {"is_sound": found.is_sound})
    else:
        print(_text(found))
    return 0 if found.is_sound else DAMAGED


def _text(found: Report) -> str:
    lines = [str(found.folder)]
    for step in found.steps:
        lines.append(f"  step {step.step:,}  {_size(step)}  {_verdict(step)}")
        lines += [f"    {line}" for line in step.wrong]
    lines += [f"  {name}  is no step: {_what(name)}" for name in found.others]
    if found.goes_on_from is None:
        lines.append("nothing to go on from: every step is damaged")
    else:
        lines.append(f"a run goes on from step {found.goes_on_from:,}")
    return "\n".join(lines)


def _size(step: StepReport) -> str:
    size = f"{step.num_bytes / 1e6:,.1f} MB in {step.num_files} files"
    return f"{size}, {step.num_leaves} leaves, {step.num_numbers:,} numbers"


def _verdict(step: StepReport) -> str:
    if step.wrong:
        return "DAMAGED"
    if not step.has_hashes:
        return "can be read; it was written before there were hashes"
    return "sound"


def _what(name: str) -> str:
    if ".damaged" in name:
        return "put aside as damaged, may be deleted"
    if ".orbax-checkpoint-tmp" in name:
        return "a save under way, or one that was killed; the next run removes it"
    return "of something else"
