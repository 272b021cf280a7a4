"""Makes an LLMasOS model (model.json, weights, tokenizer) of a training folder or checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmasos_jax.cli.options import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos convert`."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a training folder, or one step of its checkpoints",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the model's folder; must not exist")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Converts, then says what was written."""
    from llmasos_jax import api

    result = api.convert(args.source, args.out)
    if args.json:
        print_json(result.to_dict())
    else:
        print(result)
