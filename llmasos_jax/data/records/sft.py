"""Conversations as rows of which the assistant's tokens are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmasos_jax.config.schema import Config
from llmasos_jax.data.examples import ExampleRows, Examples
from llmasos_jax.data.fitting import first_fit
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.records.encode import Scored, cached_dialogues
from llmasos_jax.data.records.packed import ScoredRow, ScoredRows, empty_row
from llmasos_jax.data.records.shapes import dialogues
from llmasos_jax.data.records.sides import read_sides
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import DataError

DROPPED, CUT = "dropped, too long", "cut, too long"
SHARED = "whose answer begins within a token of the prompt"
_VERSION = 2  # of how records become rows


def read_conversations(cfg: Config, tokenizer: Tokenizer, cache: Path) -> Examples:
    """Reads the conversations of a config as rows of whole examples.

    Args:
      cfg: `data`, `finetune.chat_template`, `too_long` and `packing` are read.
      tokenizer: the model's.
      cache: folder for the ids.

    Raises:
      DataError: a record is not right, says where; nothing is left to train on.
    """
    sides = read_sides(cfg.data)
    found = cached_dialogues(dialogues(sides.records), tokenizer, cfg, cache)
    counts = dict(sides.counts)
    examples = [_fitted(example, cfg, counts) for example in found]
    count(counts, SHARED, sum(e is not None and e.is_shared for e in examples))
    train, heldout = (
        [e for i in side if (e := examples[i]) is not None] for side in (sides.train, sides.heldout)
    )
    require_some(train, counts)
    digest = digest_of(train, heldout, tokenizer, cfg)
    return Examples(_rows(train, cfg), _rows(heldout, cfg), digest, counts)


def stand_in_rows(documents: TokenDocuments, sequence_length: int) -> list[ScoredRow]:
    """A row of the shapes that all have: enough to compile a step."""
    del documents
    return [empty_row(sequence_length)]


def count(counts: dict[str, int], what: str, number: int = 1) -> None:
    """Adds to a count, which is there from 1 on."""
    if number:
        counts[what] = counts.get(what, 0) + number


def too_long(where: str, what: str, cfg: Config) -> DataError:
    """The error for an example that does not fit."""
    others = [f'"{name}"' for name in ("drop", "truncate") if name != cfg.finetune.too_long]
    return DataError(
        f"{where}: {what}, more than data.sequence_length={cfg.data.sequence_length}; raise it "
        f"(the model reads up to {cfg.model.context_length}), shorten the record, or set "
        f"finetune.too_long={' or '.join(others)}"
    )


def require_some(train: Sequence[object], counts: Mapping[str, int]) -> None:
    """Raises DataError where no example is left to train on."""
    if not train:
        said = ", ".join(f"{number} {what}" for what, number in counts.items())
        raise DataError(
            f"no example is left to train on ({said}); raise data.sequence_length, or give others"
        )


def digest_of(
    train: Sequence[Scored], heldout: Sequence[Scored], tokenizer: Tokenizer, cfg: Config
) -> str:
    """A hash of all ids and marks, and of what made rows of them."""
    settings = (
        *(_VERSION, cfg.objective.name, fingerprint(tokenizer)),
        *(cfg.data.sequence_length, cfg.data.seed, cfg.finetune.chat_template),
        *(cfg.finetune.too_long, cfg.finetune.packing),
    )
    digest = hashlib.sha256(repr(settings).encode())
    for side in (train, heldout):
        digest.update(f"{len(side)} examples".encode())
        for example in side:
            digest.update(len(example).to_bytes(8, "little"))
            digest.update(example.ids.astype("<i4").tobytes() + example.is_scored.tobytes())
    return digest.hexdigest()


def _fitted(example: Scored, cfg: Config, counts: dict[str, int]) -> Scored | None:
    """The example, cut if need be; None where it is left out."""
    size, policy = cfg.data.sequence_length, cfg.finetune.too_long
    if len(example) <= size:
        return example
    if policy == "drop":
        count(counts, DROPPED)
        return None
    if policy == "error":
        raise too_long(example.where, f"{len(example)} tokens", cfg)
    cut = example.last(size)
    if not cut.is_scored.any():
        raise too_long(
            example.where,
            f"{len(example)} tokens, and none of the last {size} is the assistant's",
            cfg,
        )
    count(counts, CUT)
    return cut


def _rows(examples: Sequence[Scored], cfg: Config) -> ExampleRows:
    size = cfg.data.sequence_length
    if cfg.finetune.packing:
        groups = first_fit([len(example) for example in examples], size)
    else:
        groups = [[i] for i in range(len(examples))]
    rows = ScoredRows(examples, groups, size)
    return ExampleRows(rows, rows.num_tokens, len(examples))
