"""Shows what a config reads: documents, tokens, and the first rows of the first training batch."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llmasos_jax.cli.main import UsageError
from llmasos_jax.cli.options import add_config, add_json, config_of, print_fields, print_json
from llmasos_jax.config.schema import Config

if TYPE_CHECKING:
    from llmasos_jax.data.batch import Batch
    from llmasos_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class DataSummary:
    """What `data show` answers.

    Attributes:
      source: where the text comes from.
      tokenizer: its kind.
      vocab_size: of the tokenizer.
      train_documents, heldout_documents: on both sides of the split.
      train_tokens, heldout_tokens: of one epoch, bos and eos included.
      tokens_per_step: tokens that the model reads in one step.
      epochs: how often `train.steps` steps read the text.
    """

    source: str
    tokenizer: str
    vocab_size: int
    train_documents: int
    heldout_documents: int
    train_tokens: int
    heldout_tokens: int
    tokens_per_step: int
    epochs: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos data`."""
    parser.add_argument("action", choices=["show"], help="what to do with the data")
    add_config(parser)
    parser.add_argument(
        "--rows", type=int, default=2, metavar="N", help="rows of text to print (%(default)s)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Reads the data as a run would, and prints what it is."""
    if args.rows < 0:
        raise UsageError(f"--rows={args.rows} must be at least 0")
    summary, rows = summarise(config_of(args), args.rows)
    if args.json:
        print_json(asdict(summary) | {"rows": rows})
        return
    print_fields(summary)
    for number, row in enumerate(rows):
        print(f"\nrow {number}: {row['tokens']} tokens of {row['segments']} documents")
        print(textwrap.indent(row["text"], "  | ", lambda line: True))


def summarise(config: Config, num_rows: int) -> tuple[DataSummary, list[dict]]:
    """Opens the data of a config; returns its figures and the first rows of batch 0."""
    from llmasos_jax.config.files import cache_folder
    from llmasos_jax.data.pipeline import open_data
    from llmasos_jax.data.sources import documents
    from llmasos_jax.data.tokenizer import build_tokenizer

    cache = cache_folder() / "data"
    tokenizer = build_tokenizer(config, documents(config.data, cache), cache)
    data = open_data(config, tokenizer, cache)
    try:
        rows = _rows(data.train[0], tokenizer, num_rows)
    finally:
        data.close()
    return DataSummary(
        source=config.data.path or config.data.source,
        tokenizer=config.tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        train_documents=data.corpus.train.num_documents,
        heldout_documents=data.corpus.heldout.num_documents,
        train_tokens=data.num_train_tokens,
        heldout_tokens=data.num_heldout_tokens,
        tokens_per_step=data.tokens_per_batch,
        epochs=config.train.steps * data.tokens_per_batch / data.num_train_tokens,
    ), rows


def _rows(batch: Batch, tokenizer: Tokenizer, count: int) -> list[dict]:
    return [
        {
            "tokens": int((segments > 0).sum()),
            "segments": int(segments.max()),
            "text": tokenizer.decode([int(t) for t in tokens[segments > 0]]),
        }
        for tokens, segments in zip(batch.tokens[:count], batch.segment_ids[:count], strict=True)
    ]
