"""Trains a config, or goes on where its folder stopped.

Going on may change train.steps, logging, evaluation, checkpoints, sampling, the mesh and the
hosts; any other difference is an error that lists it. Ctrl-C or SIGTERM saves and stops with
status 75.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos_jax.cli.options import add_config, add_json, config_of, note, print_json

if TYPE_CHECKING:
    from llmasos_jax.config.devices import HostsConfig
    from llmasos_jax.train.result import TrainResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos train`."""
    add_config(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        type=Path,
        metavar="DIR",
        help="training folder: checkpoints, config.json, metrics.jsonl, tensorboard",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, then says what came out and what was compiled."""
    config = config_of(args)  # a wrong config fails before JAX is imported

    def start() -> TrainResult:
        from llmasos_jax import api

        return api.train(config, args.workdir)

    run_on(config.hosts, start, as_json=args.json)


def run_on(hosts: HostsConfig, start: Callable[[], TrainResult], *, as_json: bool) -> None:
    """Joins the run's other processes, starts, and lets one process say what came out."""
    from llmasos_jax.parallel import distributed
    from llmasos_jax.parallel.compile_cache import use_compile_cache

    roll = distributed.join(hosts)
    # One process speaks for all.
    is_first = roll is None or roll.place.index == 0
    count = use_compile_cache()
    try:
        with contextlib.nullcontext() if roll is None else _strangers_on_stderr():
            result = start()
    finally:
        if count.requested and is_first:
            note(str(count))
    if not is_first:
        return
    if as_json:
        print_json(result.to_dict())
    else:
        print(result)


@contextlib.contextmanager
def _strangers_on_stderr() -> Iterator[None]:
    """Sends what libraries print to standard error: gloo greets each peer on standard output."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)  # what C has not written yet is theirs too
        os.dup2(ours, 1)
        os.close(ours)
