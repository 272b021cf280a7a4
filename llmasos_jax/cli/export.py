"""Writes a model in another program's format, and proves it there before it is kept."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from llmasos_jax.cli.options import add_allow_code, add_json, add_source, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos export`."""
    parser.add_argument("source", metavar="MODEL", help="what `llmasos convert` reads")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT[,...]",
        help="hf (a Hugging Face folder), gguf (llama.cpp), onnx, stablehlo",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="a new or empty folder; of several formats each gets a folder in it",
    )
    parser.add_argument("--dtype", metavar="TYPE", help="of the weights; default the model's own")
    parser.add_argument(
        "--step", type=int, metavar="N", help="which checkpoint; default the newest"
    )
    parser.add_argument(
        "--unproven",
        action="store_true",
        help="keep it without opening it by the program that it is for",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the ids (%(default)s)")
    add_source(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Exports to one format after the other, and says how far each is from the model."""
    from llmasos_jax import api
    from llmasos_jax.evals.export.targets import target_of

    names = args.to.split(",")
    for name in names:  # before the first is written
        target = target_of(name, args.dtype)
        if not args.unproven:
            target.check_runtime()
    found = {}
    for name in names:
        result = api.export(
            args.source,
            name,
            args.out / name if len(names) > 1 else args.out,
            dtype=args.dtype,
            step=args.step,
            allow_code=args.allow_code,
            revision=args.revision,
            ignore=args.ignore,
            unproven=args.unproven,
            seed=args.seed,
        )
        more = {"proven": result.proven, "difference": result.difference}
        found[name] = {**asdict(result), **more}
        if not args.json:
            print(result)
    if args.json:
        print_json(found if len(names) > 1 else found[names[0]])
