"""Writes a model card from a run: data, config, compute, metrics, receipts, limits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmasos_jax.cli.options import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos card`."""
    parser.add_argument("workdir", metavar="DIR", type=Path, help="a training folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where it is written; default standard output"
    )
    parser.add_argument(
        "--receipt",
        action="append",
        default=[],
        metavar="PATH",
        help="an export, or its parity.json; may be repeated (those below DIR are found)",
    )
    parser.add_argument(
        "--result",
        action="append",
        default=[],
        metavar="FILE",
        help="a JSON file that `llmasos eval` wrote; may be repeated",
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="TEXT",
        help="a sentence about what the model cannot do; may be repeated",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the card, or prints it."""
    from llmasos_jax.evals.card import model_card

    text = model_card(
        args.workdir,
        receipts=args.receipt,
        results=args.result,
        limits=args.limit,
        out=args.out,
    )
    if args.json:
        print_json({"card": text, "out": None if args.out is None else str(args.out)})
    elif args.out is None:
        sys.stdout.write(text)
    else:
        print(f"wrote {args.out}")
