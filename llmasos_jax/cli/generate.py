"""Continues prompts. One prompt is streamed as it is written; several are printed one by one."""

from __future__ import annotations

import argparse
import sys

from llmasos_jax.cli.options import (
    adapters_of,
    add_adapter,
    add_allow_code,
    add_json,
    add_quantize,
    add_sampling,
    add_source,
    note,
    print_json,
    sampling_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos generate`: those of `generate_text`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model.json or its folder, a training folder, a Hugging Face folder, a .gguf file, "
        "or a name (see `llmasos models`)",
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to continue")
    add_sampling(parser)
    parser.add_argument("--echo", action="store_true", help="print the prompt too")
    add_adapter(parser)
    add_quantize(parser)
    add_source(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Loads the model and writes."""
    from llmasos_jax.parallel.compile_cache import use_compile_cache

    count = use_compile_cache()
    from llmasos_jax.generate.load import load_model

    model = load_model(
        args.model,
        allow_code=args.allow_code,
        revision=args.revision,
        ignore=args.ignore,
        adapters=adapters_of(args),
        quantize=args.quantize,
    )
    options = {**sampling_of(args), "echo": args.echo, "adapter": args.adapter}
    if args.json:
        texts = model.generate_text(args.prompts, **options)
        print_json(
            {
                "model": args.model,
                "adapter": args.adapter,
                "prompts": args.prompts,
                "texts": texts,
                "seed": model.last_seed,
            }
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
