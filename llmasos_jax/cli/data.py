"""Shows what a config reads, prepares it for training, or checks what was prepared.

show: documents, tokens, what was dropped, and the first rows of the first training batch.
prepare: tokenises the text into the folder --out, by many processes; goes on where it was stopped.
check: hashes the files of a prepared folder; exit status 1 says that one is damaged.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmasos_jax.cli.main import UsageError
from llmasos_jax.cli.options import add_config, add_json, overridden, print_fields, print_json

if TYPE_CHECKING:
    from llmasos_jax.data.scan import Dropped


@dataclass(frozen=True)
class DataSummary:
    """What `data show` answers.

    Attributes:
      source: where the text comes from.
      objective: what is learned from it.
      tokenizer: its kind, or whose it is.
      vocab_size: of the tokenizer.
      train_documents, heldout_documents: on both sides of the split.
      train_tokens, heldout_tokens: of one epoch, with bos and eos where the objective reads them.
      train_rows: of one epoch. Of a stream nobody knows what is trained on.
      tokens_per_step: tokens that the model reads in one step.
      epochs: how often `train.steps` steps read the text.
      padding: share of the places in rows of "first_fit" that hold no token.
      parts: of a mixture: documents, tokens, share of the rows and epochs of each.
      counts: of records that were not taken as they are, by what was done with them.
      dropped: documents that were left out, by reason.
    """

    source: str
    objective: str
    tokenizer: str
    vocab_size: int
    train_documents: int | None
    heldout_documents: int
    train_tokens: int | None
    heldout_tokens: int
    train_rows: int | None
    tokens_per_step: int
    epochs: float | None
    padding: float | None = None
    parts: dict[str, dict[str, float]] | None = None
    counts: dict[str, int] | None = None
    dropped: dict[str, Dropped] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos data`."""
    parser.add_argument("action", choices=["show", "prepare", "check"], help="what to do")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="to check")
    add_config(parser, required=False)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to prepare")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that prepare (one for each core)"
    )
    parser.add_argument(
        "--rows", type=int, default=2, metavar="N", help="rows of text to print (%(default)s)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Does what the action says."""
    _require_fitting(args)
    if args.action == "check":
        return _check(args)
    if args.action == "prepare":
        return _prepare(args)
    return _show(args)


# What each action takes beside --json; the first is required.
_TAKEN = {
    "show": ("config", "rows"),
    "prepare": ("config", "out", "workers"),
    "check": ("folder",),
}


def _require_fitting(args: argparse.Namespace) -> None:
    """Raises UsageError for what is missing or too much."""
    given = {n for n in ("folder", "config", "out", "workers") if getattr(args, n) is not None}
    shown = lambda name: "a folder" if name == "folder" else f"--{name}"
    required = _TAKEN[args.action][:2] if args.action == "prepare" else _TAKEN[args.action][:1]
    for name in required:
        if name not in given:
            raise UsageError(f"data {args.action} needs {shown(name)}")
    for name in sorted(given - set(_TAKEN[args.action])):
        raise UsageError(f"data {args.action} takes no {shown(name).removeprefix('a ')}")
    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers={args.workers} must be at least 1")
    if args.rows < 0:
        raise UsageError(f"--rows={args.rows} must be at least 0")


def _check(args: argparse.Namespace) -> int:
    from llmasos_jax.data.prepared.read import check_folder

    found = check_folder(args.folder)
    print_json(found.to_dict()) if args.json else print(found)
    return 0 if found.is_whole else 1


def _prepare(args: argparse.Namespace) -> int:
    from llmasos_jax import api

    found = api.prepare_data(overridden(args), args.out, args.workers)
    print_json(found.to_dict()) if args.json else print(found)
    return 0


def _show(args: argparse.Namespace) -> int:
    """Reads the data as a run would, and prints what it is."""
    summary, rows, marks = summarise(overridden(args), args.rows)
    if args.json:
        print_json(asdict(summary) | {"rows": [_plain_row(row) for row in rows]})
        return 0
    from llmasos_jax.data.prepared.result import dropped_rows

    print_fields(replace(summary, dropped=None))
    for name, value in dropped_rows(summary.dropped or {}):
        print(f"{name:<16} {value}")
    if rows and "parts" in rows[0] and sys.stdout.isatty():
        _print_in_colour(rows)
        return 0
    if marks and rows:
        print(f"\n{marks}")
    for number, row in enumerate(rows):
        _print_row(number, row)
    return 0


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    return {k: [asdict(part) for part in v] if k == "parts" else v for k, v in row.items()}


def _print_in_colour(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console  # only now: importing it costs a tenth of a second

    from llmasos_jax.cli.learned import legend_in_colour, print_parts

    console = Console(highlight=False)
    legend_in_colour(rows[0]["parts"], console)
    for number, row in enumerate(rows):
        print_parts(number, row["parts"], console)


def _print_row(number: int, row: dict[str, Any]) -> None:
    from llmasos_jax.cli.learned import counted

    noun = "example" if "parts" in row else "document"
    what = f"{row['tokens']} tokens of {_counted(row['segments'], noun)}"
    if "pair" in row:
        what = f"{row['tokens']} tokens; {row['pair']}"
    elif "decoder" in row:
        what = f"{row['tokens']} tokens"
    print(f"\nrow {number}: {what}; {row.get('answer') or _predicted(row)}")
    if "parts" not in row:
        _print_text(row["text"])
    for part in row.get("parts", ()):
        print(f"  {part.name}: {counted(part.tokens, part.learned)}")
        _print_text(part.text.rstrip("\n"))
    if "decoder" in row:
        print("  the decoder writes")
        _print_text(row["decoder"])


def _predicted(row: dict[str, Any]) -> str:
    return f"{row['predicted']} predicted"


def _print_text(text: str) -> None:
    print(textwrap.indent(text, "  | ", lambda line: True))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summarise(source: Any, num_rows: int) -> tuple[DataSummary, list[dict], str | None]:
    """Opens the data of a config.

    Args:
      source: the config, in which a base (`finetune.base`) may stand for the model.
      num_rows: how many rows to describe.

    Returns:
      Its figures, the first rows of batch 0, and what the marks in them mean.
    """
    from llmasos_jax.cli.rows import describe_row, legend
    from llmasos_jax.config.files import cache_folder
    from llmasos_jax.data.examples import Examples
    from llmasos_jax.data.packing import PackedRows
    from llmasos_jax.data.pipeline import open_data
    from llmasos_jax.data.shares import epochs, padding, parts
    from llmasos_jax.data.streaming.batches import StreamedText
    from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
    from llmasos_jax.finetune.reading import reading_of
    from llmasos_jax.train.objective import build_objective

    cache = cache_folder() / "data"
    config, tokenizer = reading_of(source, cache)
    vocabulary = vocabulary_of(tokenizer, config.model.vocab_size)
    objective = build_objective(config, vocabulary)
    data = open_data(
        config,
        tokenizer,
        cache,
        prepare=objective.prepare,
        rows=objective.rows,
        by_sentence=objective.by_sentence,
        examples=objective.examples,
    )
    try:
        batch, name = next(data.train), config.objective.name
        count = min(num_rows, len(batch.tokens))
        labels = config.model.classifier.labels
        rows = [describe_row(batch, i, tokenizer, vocabulary, name, labels) for i in range(count)]
    finally:
        data.close()
    base = config.finetune.base
    text = None if isinstance(data.corpus, StreamedText) else data.corpus.train
    is_fitted, steps = config.data.packing == "first_fit", config.train.steps
    by_token = objective.rows is PackedRows and not is_fitted
    return (
        DataSummary(
            source=config.data.path or ", ".join(config.data.mixture) or config.data.source,
            objective=name,
            tokenizer=config.tokenizer.kind if base is None else f"of {base}",
            vocab_size=tokenizer.vocab_size,
            train_documents=None if text is None else text.num_documents,
            heldout_documents=data.corpus.heldout.num_documents,
            train_tokens=None if text is None else text.num_tokens,
            heldout_tokens=data.num_heldout_tokens,
            train_rows=data.num_train_rows,
            tokens_per_step=data.tokens_per_batch,
            epochs=epochs(data, steps, by_token=by_token),
            padding=padding(data) if is_fitted else None,
            parts=parts(data, steps),
            counts=dict(data.corpus.counts) or None if isinstance(data.corpus, Examples) else None,
            dropped=_dropped(data.corpus) or None,
        ),
        rows,
        legend(batch, name),
    )


def _dropped(corpus: Any) -> dict[str, Dropped]:
    """What was left out, by reason; of a mixture, by part and reason."""
    from llmasos_jax.data.corpus import Corpus
    from llmasos_jax.data.mixture import MixedCorpus

    if isinstance(corpus, Corpus):
        return dict(corpus.dropped)
    if not isinstance(corpus, MixedCorpus):
        return {}
    parts = corpus.parts.items()
    return {f"{part}: {why}": found for part, c in parts for why, found in c.dropped.items()}
