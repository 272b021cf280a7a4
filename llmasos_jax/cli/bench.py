"""How fast a model is here: tokens a second, of prompts and of new ones, as llama-bench has it."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from typing import Any

from llmasos_jax.cli.options import add_allow_code, add_json, add_quantize, add_source, note

FORMATS = ("md", "csv", "json", "jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos bench`."""
    parser.add_argument("model", metavar="MODEL", help="what `llmasos generate` reads")
    lists = {"type": numbers, "metavar": "N,N"}
    parser.add_argument(
        "-p",
        "--prompt",
        default=(512,),
        help="lengths of prompts (512); 0 leaves them out",
        **lists,
    )
    parser.add_argument(
        "-n", "--new", default=(128,), help="tokens to draw (128); 0 leaves them out", **lists
    )
    parser.add_argument(
        "-b", "--batch", default=(1,), help="texts that are drawn at once (1)", **lists
    )
    parser.add_argument(
        "-r", "--repetitions", type=int, default=5, metavar="N", help="of each test (%(default)s)"
    )
    parser.add_argument(
        "--output", choices=FORMATS, default="md", help="how figures are printed (%(default)s)"
    )
    parser.add_argument("--dtype", help="of the weights, as in load_model")
    add_source(parser)
    add_quantize(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Loads the model, times it, prints."""
    from llmasos_jax.parallel.compile_cache import use_compile_cache
    from llmasos_jax.progress import Progress

    use_compile_cache()
    from llmasos_jax.engine.bench import measure, num_runs
    from llmasos_jax.generate.load import load_model

    model = load_model(
        args.model,
        dtype=args.dtype,
        quantize=args.quantize,
        allow_code=args.allow_code,
        revision=args.revision,
        ignore=args.ignore,
    )
    prompts, news = ([num for num in nums if num] for nums in (args.prompt, args.new))
    total = num_runs(prompts, news, args.batch, args.repetitions)
    with Progress("Measuring", total=total) as progress:
        bench = measure(
            model,
            prompts,
            news,
            args.batch,
            args.repetitions,
            lambda what: progress.advance(1, what),
        )
    print(shown(bench, "json" if args.json else args.output), end="")
    if bench.memory_share is not None:
        note(
            f"one text reads its weights at {bench.memory_share:.0%} of the "
            f"{bench.memory_gb_s:.1f} GB/s that a matrix of 256 MiB times a vector reaches"
        )


def rows_of(bench: Any) -> list[dict[str, Any]]:
    """One flat object for each test."""
    count = os.cpu_count() if bench.backend == "cpu" else bench.num_devices
    return [
        {
            "model": bench.model,
            "size_bytes": bench.size_bytes,
            "num_parameters": bench.num_parameters,
            "dtype": bench.dtype,
            "backend": bench.backend,
            "cores" if bench.backend == "cpu" else "devices": count,
            "test": test.name,
            "batch": test.batch,
            "tokens_per_s": round(test.mean, 3),
            "deviation": round(test.deviation, 3),
            "rates": [round(rate, 3) for rate in test.rates],
        }
        for test in bench.tests
    ]


def shown(bench: Any, form: str) -> str:
    """The figures in one of FORMATS, with a line's end."""
    rows = rows_of(bench)
    if form == "json":
        whole = {
            "tests": rows,
            "memory_gb_s": bench.memory_gb_s,
            "memory_share": bench.memory_share,
        }
        return json.dumps(whole, indent=1) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if form == "csv":
        text = io.StringIO()
        flat = [{k: v for k, v in row.items() if k != "rates"} for row in rows]
        writer = csv.DictWriter(text, list(flat[0]) if flat else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return text.getvalue()
    return _markdown(bench, rows)


def _markdown(bench: Any, rows: list[dict[str, Any]]) -> str:
    place = "cores" if bench.backend == "cpu" else "devices"
    names = ["model", "size", "params", "backend", place, "test", "t/s"]
    cells = [
        [
            f"{bench.model} {bench.dtype}",
            f"{bench.size_bytes / 2**20:.2f} MiB",
            f"{bench.num_parameters / 1e6:.2f} M",
            bench.backend,
            str(row[place]),
            test.label,
            f"{test.mean:.2f} ± {test.deviation:.2f}",
        ]
        for row, test in zip(rows, bench.tests, strict=True)
    ]
    widths = [max(len(row[i]) for row in [names, *cells]) for i in range(len(names))]
    is_left = [True, False, False, True, False, False, False]

    def line(row: list[str]) -> str:
        parts = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_left, strict=True)
        ]
        return f"| {' | '.join(parts)} |\n"

    marks = [
        "-" * width if left else "-" * (width - 1) + ":"
        for width, left in zip(widths, is_left, strict=True)
    ]
    return line(names) + line(marks) + "".join(map(line, cells))


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers by commas.

    Example:
      >>> numbers("1,8")
      (1, 8)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of whole numbers such as 1,8"
        ) from None
