"""Makes an LLMasOS model (model.json, weights, tokenizer) of anything that can be read."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from llmasos_jax.cli.options import add_allow_code, add_json, add_source, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos convert`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a training folder or one step of its checkpoints, a Hugging Face folder, a .gguf "
        "file, a model, or a name (see `llmasos models`)",
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the model's folder: new, or a model to replace"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="which checkpoint; default the newest"
    )
    add_source(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Converts, then says what was written."""
    from llmasos_jax import api

    result = api.convert(
        args.source,
        args.out,
        step=args.step,
        allow_code=args.allow_code,
        revision=args.revision,
        ignore=args.ignore,
    )
    if args.json:
        print_json(asdict(result))
    else:
        print(result)
