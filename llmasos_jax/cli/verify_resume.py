"""Shows on a config of yours that a run killed and started again is the run never killed.

Trains some steps straight; then again in real processes that are ended by SIGKILL, once in the
middle of a step and once while a checkpoint is half written, and started again. Compares each
batch, each leaf that is restored, each loss and each leaf of the last checkpoint. On the same
devices every bit is equal; where a run goes on elsewhere (--hosts, --mesh), batches and restored
leaves are, and losses within 1e-5. Exit status 1 says that something differs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmasos_jax.cli.main import UsageError
from llmasos_jax.cli.options import add_config, add_json, note, overridden, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos verify-resume`."""
    add_config(parser)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="of the run (20)")
    parser.add_argument(
        "--kill-at", default="7", metavar="K[,K2...]", help="the step of each kill (7)"
    )
    parser.add_argument(
        "--hosts",
        metavar="H[,H2...]",
        help="processes before and after each kill, on this machine's CPU",
    )
    parser.add_argument(
        "--mesh",
        metavar="M[,M2...]",
        help="the mesh likewise, DATAxFSDPxTENSOR CPU devices: 8x1x1,2x2x2",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="keeps all runs there; else they are removed"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Verifies, and says what was found."""
    config = overridden(args)

    from llmasos_jax import api

    found = api.verify_resume(
        config,
        steps=args.steps,
        kill_at=_numbers("--kill-at", args.kill_at),
        hosts=_numbers("--hosts", args.hosts) if args.hosts else (),
        meshes=args.mesh.split(",") if args.mesh else (),
        workdir=args.workdir,
        tell=note,
    )
    if args.json:
        print_json(found.to_dict())
    else:
        print(found)
    return 0 if found.is_same else 1


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{flag}={text} has to be whole numbers with commas between") from error
