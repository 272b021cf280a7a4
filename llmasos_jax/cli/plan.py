"""Says what a run would need and take on a TPU pod, with its real compiler and without a pod.

Memory of a chip, products, collectives by mesh axis, and a lower bound of the step's time. The
compiler comes with the extra `tpu`; without it this is an estimate in closed form, and says so.
Exit status 1 if the step does not fit; it then says what to change.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos_jax.cli.options import add_config, add_json, config_of, note, print_json
from llmasos_jax.errors import ConfigError

if TYPE_CHECKING:
    from llmasos_jax.config.schema import Config
    from llmasos_jax.plan.report import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos plan`."""
    add_config(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="T",
        help="chips and their torus: v5e:16x16, v5p:4x4x4; of v4, v5e, v5p, v6e, tpu7x",
    )
    parser.add_argument(
        "--slices", type=int, metavar="N", help="such topologies, joined by a network (mesh.slices)"
    )
    parser.add_argument(
        "--tokens", metavar="N", help="tokens to be read, as 1T or 300B (the run's own steps)"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="tries meshes, remat, batches and kernel blocks, and ranks what fits",
    )
    parser.add_argument(
        "--tries", type=int, metavar="N", help="programs that --search compiles at most (16)"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="of compiling that --search may take (no end)"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="of a device that what --search finds may take (all that the chip has)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for plan.html and plan.png; of --search also best.py",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Plans, prints, and says by its status whether the step fits."""
    config = config_of(args)
    if "jax" not in sys.modules:
        # Nothing runs here; where JAX looks for TPUs that are not there, libtpu says so at length.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from llmasos_jax.plan.run import make_plan, parse_tokens

    tokens = parse_tokens(args.tokens) if args.tokens is not None else None
    if args.search:
        return _search(args, config, tokens)
    for name in ("tries", "minutes", "memory"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} goes with --search; add it, or leave --{name} out")
    _make_folder(args.out)
    plan = make_plan(config, args.topology, args.slices, tokens)
    if args.out is not None:
        _write_pictures(plan, args.out)
    if args.json:
        print_json(plan.to_dict())
    else:
        print(plan)
    return 0 if plan.fits else 1


def _search(args: argparse.Namespace, config: Config, tokens: float | None) -> int:
    from llmasos_jax.plan.best import write_best
    from llmasos_jax.plan.child import Stage
    from llmasos_jax.plan.search import Limits, search

    for name in ("tries", "minutes", "memory"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name}={value} must be a number above 0")
    tries = Limits.tries if args.tries is None else args.tries
    limits = Limits(tries, args.minutes, args.memory)
    _make_folder(args.out)
    stage = Stage("search", lines=True)
    try:
        found = search(config, args.topology, args.slices, tokens=tokens, limits=limits, say=stage)
    finally:
        stage.close()
    best = found.best
    if best is not None and best.plan is not None and args.out is not None:
        note(f"wrote {write_best(args.config, best.config, best.text, args.out)}")
        _write_pictures(best.plan, args.out)
    if args.json:
        print_json(found.to_dict())
    else:
        print(found)
        if best is not None and best.plan is not None:
            print(f"\nthe best: {best.text}\n\n{best.plan}")
    return 0 if best is not None else 1


def _make_folder(out: Path | None) -> None:
    """Before minutes of compiling, whose answer would be lost."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error}); take another --out") from error


def _write_pictures(plan: Plan, folder: Path) -> None:
    from llmasos_jax.plan.picture import write_pictures

    written = write_pictures(plan, folder)
    for path in written:
        note(f"wrote {path}")
    if len(written) == 1:
        note("no plan.png: it needs Pillow; pip install 'llmasos-jax[plot]' brings it")
