"""Makes an LLMasOS model (model.json, weights, tokenizer) of a training folder or checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from llmasos_jax.cli.options import add_allow_code, add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos convert`."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a training folder, one step of its checkpoints, or a model",
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the model's folder: new, or a model to replace"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="which checkpoint; default the newest"
    )
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Converts, then says what was written."""
    from llmasos_jax import api

    result = api.convert(args.source, args.out, step=args.step, allow_code=args.allow_code)
    if args.json:
        print_json(asdict(result))
    else:
        print(result)
