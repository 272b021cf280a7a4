"""Trains a pretrained model further, or goes on where its folder stopped.

`config.finetune.base` names the model; its parameters and its tokenizer become the run's. Going on
may change what `llmasos train` lets change. Ctrl-C or SIGTERM saves and stops with status 75.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llmasos_jax.cli.options import overridden
from llmasos_jax.cli.train import add_arguments as add_arguments
from llmasos_jax.cli.train import run_on

if TYPE_CHECKING:
    from llmasos_jax.train.result import TrainResult


def run(args: argparse.Namespace) -> None:
    """Fine-tunes, then says what came out and what was compiled."""
    config = overridden(args)  # a file that is wrong fails before JAX is imported

    from llmasos_jax.config.build import hosts_of

    def start() -> TrainResult:
        from llmasos_jax import api

        return api.finetune(config, args.workdir)

    run_on(hosts_of(config), start, as_json=args.json)
