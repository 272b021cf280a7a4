"""Whole documents side by side in rows, where they fit.

`data/packing.py` cuts the corpus at every row's end, so most documents are cut once. Here a
document stays whole if it is no longer than a row; longer ones are cut into pieces of one row each
and a rest:

    documents   a b c | d e f g h i | j k       rows of 4
    row 0       a b c .                         the last place is padding
    row 1       d e f g   h                     a full piece: the token after it is a target
    row 2       h i j k                         two segments

Each token is read exactly once in an epoch, and each pair of neighbours within a document is scored
exactly once. What goes together is decided within blocks of `BLOCK` pieces in the documents' order,
so it is a function of the corpus alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from llmasos_jax.data.packing import PackedRow, TokenDocuments

BLOCK = 4096
# Rows that are looked at for a place: all would take a time that grows with the square.
_OPEN_ROWS = 1024


def first_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Puts things into the first of the newest rows that has room for them, else into a new one.

    Args:
      lengths: of the things, each at most `size`.
      size: of a row.

    Returns:
      For each row the things in it.

    Example:
      >>> first_fit([5, 4, 3, 6], size=8)
      [[0, 2], [1], [3]]
    """
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), dtype=np.int64)
    for thing, length in enumerate(lengths):
        oldest = max(0, len(rows) - _OPEN_ROWS)
        fits = room[oldest : len(rows)] >= length
        row = oldest + int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = size
        rows[row].append(thing)
        room[row] -= length
    return rows


class FittedRows(Sequence[PackedRow]):
    """The rows of a corpus whose documents stay whole, each made when it is asked for.

    Args:
      documents: the corpus.
      sequence_length: tokens that the model reads in one row, T.

    Example:
      >>> rows = FittedRows(TokenDocuments.from_lists([[1, 2, 3], [4, 5], [6]]), sequence_length=4)
      >>> len(rows), rows[0].tokens.tolist(), rows[0].segment_ids.tolist()
      (2, [1, 2, 3, 6, 0], [1, 1, 1, 2, 0])
    """

    def __init__(self, documents: TokenDocuments, sequence_length: int) -> None:
        self.documents = documents
        self.sequence_length = sequence_length
        offsets = np.asarray(documents.offsets)
        lengths_d = np.diff(offsets)
        pieces_d = -(-lengths_d // sequence_length)
        first_p = np.repeat(np.cumsum(pieces_d) - pieces_d, pieces_d)
        inside_p = (np.arange(len(first_p)) - first_p) * sequence_length
        self._starts_p = np.repeat(offsets[:-1], pieces_d) + inside_p
        rest_p = np.repeat(lengths_d, pieces_d) - inside_p
        self._lengths_p = np.minimum(rest_p, sequence_length)
        self._goes_on_p = rest_p > sequence_length
        groups: list[list[int]] = []
        for start in range(0, len(self._starts_p), BLOCK):
            block = self._lengths_p[start : start + BLOCK].tolist()
            groups += [[start + p for p in group] for group in first_fit(block, sequence_length)]
        self._bounds_r = np.cumsum([0, *map(len, groups)])
        self._pieces = np.array([p for group in groups for p in group], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._bounds_r) - 1

    @overload
    def __getitem__(self, index: int) -> PackedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedRow]: ...
    def __getitem__(self, index: int | slice) -> PackedRow | list[PackedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        tokens, segment_ids, positions = np.zeros((3, self.sequence_length + 1), dtype=np.int32)
        place = 0
        pieces = self._pieces[self._bounds_r[index] : self._bounds_r[index + 1]]
        for segment, piece in enumerate(pieces, start=1):
            start, length = int(self._starts_p[piece]), int(self._lengths_p[piece])
            length += bool(self._goes_on_p[piece])
            here = slice(place, place + length)
            tokens[here] = self.documents.ids[start : start + length]
            segment_ids[here], positions[here] = segment, np.arange(length)
            place += length
        return PackedRow(tokens, segment_ids, positions)
