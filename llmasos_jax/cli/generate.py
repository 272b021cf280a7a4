"""Continues prompts. One prompt is streamed as it is written; several are printed one by one."""

from __future__ import annotations

import argparse
import sys

from llmasos_jax.cli.options import add_allow_code, add_json, add_source, note, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos generate`: those of `generate_text`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model.json or its folder, a training folder, a Hugging Face folder, a .gguf file, "
        "or a name (see `llmasos models`)",
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to continue")
    parser.add_argument(
        "--max-length", type=int, default=100, metavar="N", help="new tokens at most (%(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (%(default)s)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest P in sum")
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="drop what is under P times the likeliest"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="divides the scores of tokens that are there (%(default)s: no)",
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end there; may be repeated"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same text")
    parser.add_argument("--echo", action="store_true", help="print the prompt too")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="one compiled shape for all: exact whatever the neighbours, and slower",
    )
    add_source(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Loads the model and writes."""
    from llmasos_jax.cli.compile_cache import use_compile_cache

    count = use_compile_cache()
    from llmasos_jax.generate.load import load_model

    model = load_model(
        args.model, allow_code=args.allow_code, revision=args.revision, ignore=args.ignore
    )
    options = {
        "max_length": args.max_length,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "stop": args.stop,
        "seed": args.seed,
        "echo": args.echo,
        "deterministic": args.deterministic,
    }
    if args.json:
        texts = model.generate_text(args.prompts, **options)
        print_json(
            {"model": args.model, "prompts": args.prompts, "texts": texts, "seed": model.last_seed}
        )
    elif len(args.prompts) == 1:
        for piece in model.generate_text(args.prompts[0], stream=True, **options):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
    else:
        texts = model.generate_text(args.prompts, **options)
        for number, (prompt, text) in enumerate(zip(args.prompts, texts, strict=True), 1):
            note(f"--- {number} of {len(texts)}: {prompt}")
            print(text, flush=True)
    if args.seed is None and args.temperature > 0:
        note(f"seed={model.last_seed} (--seed={model.last_seed} writes the same again)")
    if args.debug:
        note(str(count))
