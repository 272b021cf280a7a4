"""Runs an ablation sweep, or goes on where its folder stopped; writes its report.

FILE is a Python file with sweep(add) over a config. Points that share shapes train together in one
program. What is done is not trained again. Ctrl-C or SIGTERM saves and stops with status 75.
`llmasos sweep report DIR` writes the report of a sweep's folder, done or not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos_jax.cli.main import RUN_FAILED, UsageError
from llmasos_jax.cli.options import add_json, print_json

if TYPE_CHECKING:
    from llmasos_jax.sweep.executors.executor import Executor
    from llmasos_jax.sweep.report.write import SweepReport

_EXECUTORS = ("local", "slurm", "ray")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos sweep`."""
    parser.set_defaults(takes_overrides=True)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FILE",
        help="the sweep's Python file (change its config with --config.train.steps=100); or "
        "`report DIR`",
    )
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="the sweep's folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all points, print what they cost, and stop"
    )
    parser.add_argument(
        "--executor",
        choices=_EXECUTORS,
        default="local",
        help="where jobs run: processes of this machine, or a cluster (%(default)s)",
    )
    parser.add_argument(
        "--executor-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for slurm time=4:00:00, and partition, account, gpus_per_node, ...; for ray address, "
        "num_cpus, num_gpus",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="programs at once (here 1; on a cluster all)"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="what a job may hold in memory; else it fails"
    )
    parser.add_argument(
        "--together",
        type=int,
        default=64,
        metavar="N",
        help="points that share a program at most (%(default)s)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Runs a sweep and shows its report; fails if a point has no result."""
    if args.words[0] == "report":
        return _report(args)
    if len(args.words) > 1:
        raise UsageError(f"{args.words[1]!r} is one argument too many; give one sweep's file")
    for flag in ("jobs", "together"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UsageError(f"--{flag}={value} must be at least 1")
    if args.memory is not None and not args.memory > 0:
        raise UsageError(f"--memory={args.memory} must be above 0 GiB")
    if args.dry_run:
        return _dry_run(args)
    if args.workdir is None:
        raise UsageError("--workdir=DIR is missing: where the runs and their report go")
    from llmasos_jax.sweep.run import run_sweep

    report = run_sweep(
        Path(args.words[0]),
        args.workdir,
        overrides=args.overrides,
        executor=_executor(args),
        together=args.together,
    )
    return _show(report, as_json=args.json)


def _executor(args: argparse.Namespace) -> Executor:
    from llmasos_jax.sweep.executors.remote import MANY

    options = _options(args.executor_option)
    if args.executor == "slurm":
        from llmasos_jax.sweep.executors.slurm import SlurmExecutor

        return SlurmExecutor(options, args.jobs or MANY, args.memory)
    if args.executor == "ray":
        from llmasos_jax.sweep.executors.ray import RayExecutor

        return RayExecutor(options, args.jobs or MANY, args.memory)
    from llmasos_jax.sweep.executors.local import LocalExecutor

    if options:
        raise UsageError("--executor-option is for --executor=slurm and ray")
    return LocalExecutor(args.jobs or 1, args.memory)


def _options(words: list[str]) -> dict[str, str]:
    """From NAME=VALUE, each once."""
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in options:
            what = "is given twice" if name in options else "is not NAME=VALUE"
            raise UsageError(f"--executor-option {word} {what}")
        options[name] = value
    return options


def _report(args: argparse.Namespace) -> int:
    if len(args.words) != 2:
        raise UsageError("give one folder: llmasos sweep report DIR")
    from llmasos_jax.sweep.places import Places
    from llmasos_jax.sweep.report.write import write_report

    return _show(write_report(Places(Path(args.words[1]))), as_json=args.json)


def _dry_run(args: argparse.Namespace) -> int:
    from llmasos_jax.sweep.check import check_on_devices
    from llmasos_jax.sweep.cost import cost_of
    from llmasos_jax.sweep.grouping import grouped
    from llmasos_jax.sweep.points import read_sweep

    sweep = read_sweep(Path(args.words[0]), args.overrides)
    groups = grouped(sweep.points, args.together)
    if args.executor == "local":
        check_on_devices(groups, sweep.metric)
    cost = cost_of(groups, peak=_peak() if args.executor == "local" else None)
    if args.json:
        print_json(json.loads(json.dumps(cost.to_dict())))
    else:
        print(cost)
    return 0


def _peak() -> tuple[float, str] | None:
    """Operations a second of all devices here, where that is known."""
    import math

    import jax

    from llmasos_jax.train.metrics import peak_flops

    found, note = peak_flops(jax.devices()[0])
    return None if math.isnan(found) else (found * len(jax.devices()), note)


def _show(report: SweepReport, *, as_json: bool) -> int:
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)
    return RUN_FAILED if report.num_failed else 0
