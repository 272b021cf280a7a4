"""Shows what a config reads: documents, tokens, and the first rows of the first training batch."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict, dataclass

from llmasos_jax.cli.main import UsageError
from llmasos_jax.cli.options import add_config, add_json, config_of, print_fields, print_json
from llmasos_jax.config.schema import Config


@dataclass(frozen=True)
class DataSummary:
    """What `data show` answers.

    Attributes:
      source: where the text comes from.
      objective: what is learned from it.
      tokenizer: its kind.
      vocab_size: of the tokenizer.
      train_documents, heldout_documents: on both sides of the split.
      train_tokens, heldout_tokens: of one epoch, with bos and eos where the objective reads them.
      train_rows: of one epoch.
      tokens_per_step: tokens that the model reads in one step.
      epochs: how often `train.steps` steps read the text.
    """

    source: str
    objective: str
    tokenizer: str
    vocab_size: int
    train_documents: int
    heldout_documents: int
    train_tokens: int
    heldout_tokens: int
    train_rows: int
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
    summary, rows, marks = summarise(config_of(args), args.rows)
    if args.json:
        print_json(asdict(summary) | {"rows": rows})
        return
    print_fields(summary)
    if marks and rows:
        print(f"\n{marks}")
    for number, row in enumerate(rows):
        what = f"{row['tokens']} tokens of {_counted(row['segments'], 'document')}"
        if "pair" in row:
            what = f"{row['tokens']} tokens; {row['pair']}"
        elif "decoder" in row:
            what = f"{row['tokens']} tokens"
        print(f"\nrow {number}: {what}; {row['predicted']} predicted")
        print(textwrap.indent(row["text"], "  | ", lambda line: True))
        if "decoder" in row:
            print("  the decoder writes")
            print(textwrap.indent(row["decoder"], "  | ", lambda line: True))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summarise(config: Config, num_rows: int) -> tuple[DataSummary, list[dict], str | None]:
    """Opens the data of a config.

    Returns:
      Its figures, the first rows of batch 0, and what the marks in them mean.
    """
    from llmasos_jax.cli.rows import describe_row, legend
    from llmasos_jax.config.files import cache_folder
    from llmasos_jax.data.packing import PackedRows
    from llmasos_jax.data.pipeline import open_data
    from llmasos_jax.data.sources import documents
    from llmasos_jax.data.tokenizers.load import build_tokenizer
    from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
    from llmasos_jax.train.objective import build_objective

    cache = cache_folder() / "data"
    tokenizer = build_tokenizer(config, documents(config.data, cache), cache)
    vocabulary = vocabulary_of(tokenizer, config.model.vocab_size)
    objective = build_objective(config, vocabulary)
    data = open_data(
        config,
        tokenizer,
        cache,
        prepare=objective.prepare,
        rows=objective.rows,
        by_sentence=objective.by_sentence,
    )
    try:
        batch, name = data.train[0], config.objective.name
        count = min(num_rows, len(batch.tokens))
        rows = [describe_row(batch, i, tokenizer, vocabulary, name) for i in range(count)]
    finally:
        data.close()
    read = config.train.steps * data.tokens_per_batch / data.num_train_tokens
    return (
        DataSummary(
            source=config.data.path or config.data.source,
            objective=name,
            tokenizer=config.tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            train_documents=data.corpus.train.num_documents,
            heldout_documents=data.corpus.heldout.num_documents,
            train_tokens=data.num_train_tokens,
            heldout_tokens=data.num_heldout_tokens,
            train_rows=data.num_train_rows,
            tokens_per_step=data.tokens_per_batch,
            epochs=read
            if objective.rows is PackedRows
            else config.train.steps * data.batch_size / data.num_train_rows,
        ),
        rows,
        legend(batch),
    )
