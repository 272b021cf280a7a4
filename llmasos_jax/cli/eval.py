"""Asks a model what tasks ask; `llmasos eval compare A.json B.json ...` compares results."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from llmasos_jax.cli.main import UsageError
from llmasos_jax.cli.options import add_allow_code, add_json, add_source, note, print_json

COMPARE = "compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos eval`."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="MODEL",
        help="a model as `llmasos generate` takes it; or `compare` and results to compare",
    )
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="T",
        help="a .toml or .json file, or mmlu_dev, mmlu_dev_text, addition, python_docs; "
        "may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for results (default results); what is there already is gone on with; of "
        "`compare` the page (default comparison.html)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="examples at most, the first ones")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of draws (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="begin again")
    parser.add_argument("--dtype", metavar="TYPE", help="of the weights; default as `generate`")
    add_source(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the tasks one after the other, or compares."""
    if args.words[0] == COMPARE:
        _compare(args)
        return
    if len(args.words) > 1:
        raise UsageError(f"{args.words[1]!r} is one argument too many; give one model")
    if not args.task:
        raise UsageError("--task is missing; give a task's file, or a name such as mmlu_dev")
    from llmasos_jax.evals.tasks.task import load_task
    from llmasos_jax.parallel.compile_cache import use_compile_cache

    tasks = [load_task(task) for task in args.task]  # before the model is read
    count = use_compile_cache()
    from llmasos_jax.evals.tasks.run import run_task
    from llmasos_jax.generate.load import load_model

    model = load_model(
        args.words[0],
        dtype=args.dtype,
        allow_code=args.allow_code,
        revision=args.revision,
        ignore=args.ignore,
    )
    out = args.out or Path("results")
    found = {}
    for task in tasks:
        result = run_task(model, task, out=out, limit=args.limit, seed=args.seed, fresh=args.fresh)
        fields = asdict(result)
        del fields["records"]
        file = out / str(Path(str(result.examples)).with_suffix(".json"))
        found[task.name] = {**fields, "file": str(file)}
        if not args.json:
            print(result)
            note(f"  {file}")
    if args.json:
        print_json(found)
    if args.debug:
        note(str(count))


def _compare(args: argparse.Namespace) -> None:
    if args.task or len(args.words) < 3:
        raise UsageError("compare takes two or more .json files that `llmasos eval` wrote")
    from llmasos_jax.evals.report.compare import compare
    from llmasos_jax.evals.report.page import page
    from llmasos_jax.format.write import write_file

    found = compare(args.words[1:], seed=args.seed)
    out = args.out or Path("comparison.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page(found).encode("utf-8", "replace"))
    if args.json:
        print_json({**found.to_dict(), "page": str(out)})
    else:
        print(found)
        note(str(out))
