"""Preference pairs as rows: the prompt with the better answer, and again with the other one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.examples import ExampleRows, Examples
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.records.encode import Scored, cached_dialogues
from llmasos_jax.data.records.packed import ScoredRow, ScoredRows, empty_row, next_scored
from llmasos_jax.data.records.sft import (
    CUT,
    DROPPED,
    SHARED,
    count,
    digest_of,
    require_some,
    too_long,
)
from llmasos_jax.data.records.shapes import preferences
from llmasos_jax.data.records.sides import read_sides
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import DataError

Pair = tuple[Scored, Scored]  # the chosen one first


@dataclass(frozen=True)
class PairRow:
    """One pair before the objective has looked at it.

    Attributes:
      scored: the chosen conversation as segment 1, the rejected one as segment 2.
      reference: float32 [2], log-probabilities (nats) of the two answers under the model that the
        run starts from; NaN until they are known.
    """

    scored: ScoredRow
    reference: np.ndarray


class PairRows(Sequence[PairRow]):
    """Rows of one pair each.

    Args:
      pairs: each of at most `sequence_length` tokens together.
      sequence_length: T.
      reference: float32 [pairs, 2]; None while it is not known.
    """

    def __init__(
        self, pairs: Sequence[Pair], sequence_length: int, reference: np.ndarray | None = None
    ) -> None:
        self.pairs = pairs
        groups = [[2 * i, 2 * i + 1] for i in range(len(pairs))]
        self.scored = ScoredRows(_texts(pairs), groups, sequence_length)
        unknown = np.full((len(pairs), 2), np.nan, dtype=np.float32)
        self.reference = unknown if reference is None else reference

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PairRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PairRow]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return PairRow(self.scored[index], self.reference[index])


def read_preferences(cfg: Config, tokenizer: Tokenizer, cache: Path) -> Examples:
    """Reads the preference pairs of a config, one a row; the last answer alone is learned.

    Args:
      cfg: `data`, `finetune.chat_template` and `too_long` are read.
      tokenizer: the model's.
      cache: folder for the ids.

    Raises:
      DataError: a record is not right, says where; nothing is left to train on.
    """
    sides = read_sides(cfg.data)
    read = preferences(sides.records)
    both = [dialogue for pair in read for dialogue in (pair.chosen, pair.rejected)]
    texts = cached_dialogues(both, tokenizer, cfg, cache, last_only=True)
    for chosen, rejected in zip(texts[::2], texts[1::2], strict=True):
        if np.array_equal(chosen.ids, rejected.ids):
            raise DataError(
                f"{chosen.where}: its two answers are the same {len(chosen)} tokens with their "
                "prompt (the chat template may trim them), so there is nothing to prefer; take the "
                "record out"
            )
    counts = dict(sides.counts)
    pairs = [_fitted(pair, cfg, counts) for pair in zip(texts[::2], texts[1::2], strict=True)]
    kept = [pair for pair in pairs if pair is not None]
    count(counts, SHARED, sum(text.is_shared for pair in kept for text in pair))
    train, heldout = (
        [pair for i in side if (pair := pairs[i]) is not None]
        for side in (sides.train, sides.heldout)
    )
    require_some(train, counts)
    digest = digest_of(_texts(train), _texts(heldout), tokenizer, cfg)
    return Examples(_rows(train, cfg), _rows(heldout, cfg), digest, counts)


def with_reference(examples: Examples, train: np.ndarray, heldout: np.ndarray) -> Examples:
    """The same pairs with what the reference says of them.

    Args:
      examples: of `read_preferences`.
      train: float32 [rows of `examples.train`, 2], log-probabilities of chosen and rejected answer.
      heldout: the same of `examples.heldout`.

    Raises:
      DataError: one is of another shape, or not finite.
    """

    def filled(side: ExampleRows, values: np.ndarray, name: str) -> ExampleRows:
        rows = side.rows
        if not isinstance(rows, PairRows):
            raise DataError(f"{name} has {type(rows).__name__}; expected the rows of preferences")
        values = np.asarray(values, dtype=np.float32)
        if values.shape != (len(rows), 2) or not np.isfinite(values).all():
            raise DataError(
                f"log-probabilities of the reference for {name}: {values.shape}, "
                f"{int(np.sum(~np.isfinite(values)))} not finite; expected finite ({len(rows)}, 2)"
            )
        known = PairRows(rows.pairs, rows.scored.sequence_length, values)
        return dataclasses.replace(side, rows=known)

    return dataclasses.replace(
        examples,
        train=filled(examples.train, train, "train"),
        heldout=filled(examples.heldout, heldout, "heldout"),
    )


def pair_batch(row: PairRow, rng: np.random.Generator | None = None) -> Batch:
    """A row as `next_scored` makes it, with extra["reference"] float32 [2]."""
    batch = next_scored(row.scored, rng)
    return dataclasses.replace(batch, extra={"reference": row.reference})


def stand_in_pairs(documents: TokenDocuments, sequence_length: int) -> list[PairRow]:
    """A row of the shapes that all have: enough to compile a step."""
    del documents
    return [PairRow(empty_row(sequence_length), np.zeros(2, dtype=np.float32))]


def _fitted(pair: Pair, cfg: Config, counts: dict[str, int]) -> Pair | None:
    """The pair, the beginning of its prompt cut if need be; None where it is left out."""
    chosen, rejected = pair
    over = len(chosen) + len(rejected) - cfg.data.sequence_length
    if over <= 0:
        return pair
    if cfg.finetune.too_long == "drop":
        count(counts, DROPPED)
        return None
    what = f"its answers have {len(chosen)} and {len(rejected)} tokens with their prompt"
    if cfg.finetune.too_long == "error":
        raise too_long(chosen.where, what, cfg)
    # As much of both, so that both go on from the same words, which are never all cut.
    cut = -(-over // 2)
    if cut >= min(int(text.is_scored.argmax()) for text in pair):
        raise too_long(
            chosen.where,
            f"{what}, and the prompt is too short to cut {cut} tokens of it",
            cfg,
        )
    count(counts, CUT)
    return chosen.last(len(chosen) - cut), rejected.last(len(rejected) - cut)


def _texts(pairs: Sequence[Pair]) -> list[Scored]:
    return [text for pair in pairs for text in pair]


def _rows(pairs: Sequence[Pair], cfg: Config) -> ExampleRows:
    rows = PairRows(pairs, cfg.data.sequence_length)
    return ExampleRows(rows, rows.scored.num_tokens, len(pairs))
