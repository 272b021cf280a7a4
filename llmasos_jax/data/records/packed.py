"""Rows of whole examples, several side by side where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from llmasos_jax.data.batch import Batch
from llmasos_jax.data.records.encode import Scored


@dataclass(frozen=True)
class ScoredRow:
    """A row before an objective has looked at it.

    Attributes:
      tokens: int32 [T]; 0 on padding.
      segment_ids: int32 [T], which example, from 1; 0 on padding.
      positions: int32 [T], place in the example, from 0.
      is_scored: bool [T], whether the token is learned.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    is_scored: np.ndarray


class ScoredRows(Sequence[ScoredRow]):
    """Rows of examples, each made when it is asked for.

    Args:
      examples: all that the rows are of.
      groups: for each row the numbers of its examples, which together fit into it.
      sequence_length: T.

    Example:
      >>> example = Scored(np.array([5, 6, 7]), np.array([False, True, True]), "a.jsonl:1")
      >>> row = ScoredRows([example], [[0, 0]], sequence_length=8)[0]
      >>> row.tokens.tolist(), row.segment_ids.tolist(), row.positions.tolist()
      ([5, 6, 7, 5, 6, 7, 0, 0], [1, 1, 1, 2, 2, 2, 0, 0], [0, 1, 2, 0, 1, 2, 0, 0])
    """

    def __init__(
        self, examples: Sequence[Scored], groups: Sequence[Sequence[int]], sequence_length: int
    ) -> None:
        self.examples, self.groups, self.sequence_length = examples, groups, sequence_length

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> ScoredRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ScoredRow]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = empty_row(self.sequence_length)
        start = 0
        for segment, number in enumerate(self.groups[index], start=1):
            example = self.examples[number]
            place = slice(start, start + len(example))
            row.tokens[place], row.is_scored[place] = example.ids, example.is_scored
            row.segment_ids[place], row.positions[place] = segment, np.arange(len(example))
            start = place.stop
        return row

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, padding not counted."""
        return sum(len(self.examples[i]) for group in self.groups for i in group)


def empty_row(sequence_length: int) -> ScoredRow:
    """A row of padding alone."""
    tokens, segment_ids, positions = np.zeros((3, sequence_length), dtype=np.int32)
    return ScoredRow(tokens, segment_ids, positions, np.zeros(sequence_length, dtype=bool))


def next_scored(row: ScoredRow, rng: np.random.Generator | None = None) -> Batch:
    """Each token predicts the next one of its own example, and counts where that one is learned.

        tokens    u u a a | u a .       u the user's, a the assistant's
        targets   0 a a 0 | a 0 0
        weights   0 1 1 0 | 1 0 0

    Args:
      row: arrays [T].
      rng: not used; there is nothing random in it.

    Returns:
      A Batch of arrays [T].

    Example:
      >>> example = Scored(np.array([5, 6, 7]), np.array([False, False, True]), "a.jsonl:1")
      >>> batch = next_scored(ScoredRows([example], [[0]], sequence_length=4)[0])
      >>> batch.targets.tolist(), batch.loss_weights.tolist()
      ([0, 7, 0, 0], [0.0, 1.0, 0.0, 0.0])
    """
    del rng
    is_scored = np.zeros_like(row.is_scored)
    is_scored[:-1] = row.is_scored[1:] & (row.segment_ids[1:] == row.segment_ids[:-1])
    targets = np.zeros_like(row.tokens)
    targets[:-1] = np.where(is_scored[:-1], row.tokens[1:], 0)
    return Batch(
        tokens=row.tokens,
        targets=targets,
        loss_weights=is_scored.astype(np.float32),
        segment_ids=row.segment_ids,
        positions=row.positions,
    )
