"""Cuts a corpus of token ids into rows of one length, with nothing lost.

The documents stand one after the other; row i reads `sequence_length` tokens from token
i * sequence_length on, plus the one after, which is only a target:

    corpus      a b c d | e f | g h i j        two borders between three documents
    row 0       a b c d   e                    sequence_length 4
    segments    1 1 1 1   2
    row 1       e f g h   i                    e was not scored above: it begins a document
    segments    1 1 2 2   2
    positions   0 1 0 1   2
    row 2       i j . .   .                    the third document goes on as a new segment; padding

So row i is a function of (corpus, i) alone, each token is read exactly once in an epoch, and each
pair of neighbours within a document is scored exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True)
class PackedRow:
    """One row (or, with a leading axis, several) before an objective has looked at it.

    Attributes:
      tokens: int32 [T + 1]; 0 on padding.
      segment_ids: int32 [T + 1], from 1; 0 on padding.
      positions: int32 [T + 1], place in the segment, from 0.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class TokenDocuments:
    """Documents as token ids, one after the other.

    Attributes:
      ids: unsigned integers [tokens].
      offsets: int64 [documents + 1]; document d is `ids[offsets[d]:offsets[d + 1]]`.
      sentences: int64, rising, where sentences begin and, last, where the last one ends (each
        document's border is among them); None where that was not kept.
    """

    ids: np.ndarray
    offsets: np.ndarray
    sentences: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens in all documents."""
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.offsets) - 1

    @classmethod
    def from_lists(cls, documents: Sequence[Sequence[int]]) -> TokenDocuments:
        """Puts lists of ids one after the other (for tests and small data).

        Example:
          >>> TokenDocuments.from_lists([[5, 6], [7]]).offsets.tolist()
          [0, 2, 3]
        """
        offsets = np.cumsum([0, *(len(d) for d in documents)], dtype=np.int64)
        ids = np.array([i for d in documents for i in d], dtype=np.uint32)
        return cls(ids, offsets)


class PackedRows(Sequence[PackedRow]):
    """The rows of a corpus, each made when it is asked for.

    Args:
      documents: the corpus.
      sequence_length: tokens that the model reads in one row, T.

    Example:
      >>> rows = PackedRows(TokenDocuments.from_lists([[1, 2, 3], [4, 5]]), sequence_length=4)
      >>> len(rows), rows[0].tokens.tolist(), rows[0].segment_ids.tolist()
      (2, [1, 2, 3, 4, 5], [1, 1, 1, 2, 2])
      >>> rows[1].tokens.tolist(), rows[1].segment_ids.tolist()
      ([5, 0, 0, 0, 0], [1, 0, 0, 0, 0])
    """

    def __init__(self, documents: TokenDocuments, sequence_length: int) -> None:
        self.documents = documents
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return -(-self.documents.num_tokens // self.sequence_length)

    @overload
    def __getitem__(self, index: int) -> PackedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedRow]: ...
    def __getitem__(self, index: int | slice) -> PackedRow | list[PackedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self.sequence_length
        stop = min(start + self.sequence_length + 1, self.documents.num_tokens)
        return self._cut(start, stop)

    def _cut(self, start: int, stop: int) -> PackedRow:
        width, n = self.sequence_length + 1, stop - start
        offsets = self.documents.offsets
        document_t = np.searchsorted(offsets, np.arange(start, stop), side="right") - 1
        is_first_t = np.ones(n, dtype=bool)
        is_first_t[1:] = document_t[1:] != document_t[:-1]
        index_t = np.arange(n, dtype=np.int32)
        tokens, segment_ids, positions = np.zeros((3, width), dtype=np.int32)
        tokens[:n] = self.documents.ids[start:stop]
        segment_ids[:n] = np.cumsum(is_first_t)
        positions[:n] = index_t - np.maximum.accumulate(np.where(is_first_t, index_t, 0))
        return PackedRow(tokens, segment_ids, positions)


def empty_row(sequence_length: int) -> PackedRow:
    """A row of padding alone.

    Example:
      >>> empty_row(2).segment_ids.tolist()
      [0, 0, 0]
    """
    return PackedRow(*np.zeros((3, sequence_length + 1), dtype=np.int32))
