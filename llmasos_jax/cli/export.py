"""Writes a model in another program's format, and proves it there before it is kept."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from llmasos_jax.cli.options import add_allow_code, add_json, add_source, print_json
from llmasos_jax.errors import FormatError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos export`."""
    parser.add_argument("source", metavar="MODEL", help="what `llmasos convert` reads")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT[,...]",
        help="hf (a Hugging Face folder), gguf (llama.cpp), onnx, stablehlo; of a "
        "LoRA run peft, its adapter alone",
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
    parser.add_argument(
        "--without-iree",
        action="store_true",
        help="of stablehlo: do not compile it with IREE as well, which takes a while",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the ids (%(default)s)")
    add_source(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Exports to one format after the other, and says how far each is from the model."""
    from llmasos_jax.evals.export.run import export_models

    names = args.to.split(",")
    if len(set(names)) < len(names):
        raise FormatError(f"--to={args.to} names a format twice; name each once")
    outs = {name: args.out / name if len(names) > 1 else args.out for name in names}
    found = {}
    for result in export_models(
        args.source,
        outs,
        dtype=args.dtype,
        step=args.step,
        allow_code=args.allow_code,
        revision=args.revision,
        ignore=args.ignore,
        unproven=args.unproven,
        seed=args.seed,
        iree=not args.without_iree,
    ):
        more = {"proven": result.proven, "difference": result.difference}
        found[result.target] = {**asdict(result), **more}
        if not args.json:
            print(result, flush=True)
    if args.json:
        print_json(found if len(names) > 1 else found[names[0]])
