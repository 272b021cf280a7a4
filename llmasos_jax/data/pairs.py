"""Rows of two texts, A and B: does B follow A (NSP), or in which order did they stand (SOP)?

A row is a run of whole sentences of one document that fills a sequence; `short_fraction` of the
rows have a random shorter length, so that short texts are seen as well (BERT's recipe):

    document    s0 s1 s2 | s3 s4 s5 | s6         three rows; the last one is what is left
    row 1       [CLS] s3 [SEP] s4 s5 [SEP]       follows: label 0
                [CLS] s3 [SEP] t7 t8 [SEP]       half of the time: t of another document, label 1
    swapped     [CLS] s4 s5 [SEP] s3 [SEP]       sentence order: label 1

Where A ends, which B, what is cut and what is masked is drawn anew each time that a row is read.

Differences from BERT's program, so that lengths and kinds of text tell little of the label: A's end
is drawn before the label; the row that ends a document asks no more of a foreign B than of the true
one; a foreign B begins at any sentence of the other documents with the same probability (BERT draws
the document first), and where enough text is left, if its document has so much. And a row of one
sentence is split at a token, whatever its label; BERT makes it a pair that does not follow. There
a foreign B is a part of one sentence as well, which begins inside it; where no sentence drawn is
long enough for it, the true B is cut as short.

References:
  Devlin et al., 2018, arXiv 1810.04805, section 3.1 and appendix A.2.
  Lan et al., 2019, ALBERT, arXiv 1909.11942, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.errors import ConfigError, DataError

SPECIALS = 3  # [CLS] A [SEP] B [SEP]
SHORTEST = SPECIALS + 2
_DRAWN_SENTENCES = 32  # of which one that is long enough, or the longest, gives a part


@dataclass(frozen=True)
class PairRow:
    """Which sentences a row is made of.

    Attributes:
      rows: the rows that it is one of, with the documents.
      document: index of its document.
      first, last: its sentences are `first` to `last - 1` of the corpus.
      target: tokens that it was to have; more are cut, fewer are there at a document's end.
    """

    rows: PairRows
    document: int
    first: int
    last: int
    target: int


@dataclass(frozen=True)
class Pair:
    """Two texts.

    Attributes:
      a, b: integers [A], [B], without special tokens.
      label: 0 where b follows a in its document, else 1.
    """

    a: np.ndarray
    b: np.ndarray
    label: int


class PairRows(Sequence[PairRow]):
    """The rows of a corpus by sentence, found once, each read when it is asked for.

    A document's last row is left out if it is of one token, which cannot be two texts.

    Args:
      documents: a corpus by sentence; where `sentences` is None each document is one sentence.
      sequence_length: tokens that the model reads in one row, special ones included.
      short_fraction: share of the rows that are to be shorter.
      seed: fixes which.

    Raises:
      ConfigError: the sequence is too short for two texts.

    Example:
      >>> documents = TokenDocuments.from_lists([[1, 2, 3, 4], [5, 6, 7]])
      >>> rows = PairRows(documents, sequence_length=8)
      >>> [(row.document, row.first, row.last) for row in rows]
      [(0, 0, 1), (1, 1, 2)]
    """

    def __init__(
        self,
        documents: TokenDocuments,
        sequence_length: int,
        *,
        short_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        require_length(sequence_length)
        self.documents = documents
        self.max_tokens = sequence_length - SPECIALS
        offsets = documents.offsets
        borders = offsets if documents.sentences is None else documents.sentences
        # Borders twice in a place, of documents without tokens, are one.
        self.borders = np.asarray(borders)[np.diff(borders, prepend=-1) > 0]
        self.starts = np.searchsorted(self.borders, offsets[:-1])
        self.stops = np.searchsorted(self.borders, offsets[1:])
        self.filled = np.flatnonzero(self.stops > self.starts)
        self._filled_starts = self.starts[self.filled]
        self._find_rows(short_fraction, np.random.default_rng([seed, 0x9A175]))

    def _find_rows(self, short_fraction: float, rng: np.random.Generator) -> None:
        num_sentences = len(self.borders) - 1
        # What a row would have to fill if it began at this sentence.
        target_s = np.full(num_sentences, self.max_tokens, dtype=np.int32)
        is_short_s = rng.random(num_sentences) < short_fraction
        count = int(is_short_s.sum())
        target_s[is_short_s] = rng.integers(2, self.max_tokens + 1, size=count, dtype=np.int32)
        next_s = np.searchsorted(self.borders, self.borders[:-1] + target_s)
        found: list[tuple[np.ndarray, ...]] = []
        # All documents at once, one row of each in a turn.
        document, first = self.filled, self._filled_starts
        while first.size:
            stop = self.stops[document]
            last = np.minimum(next_s[first], stop)
            found.append((document, first, last))
            goes_on = last < stop
            document, first = document[goes_on], last[goes_on]
        empty = np.zeros(0, dtype=np.int64)
        columns = zip(*found, strict=True) if found else (empty[None],) * 3
        document, first, last = (np.concatenate(list(column)) for column in columns)
        is_kept = self.borders[last] - self.borders[first] >= 2
        document, first, last = document[is_kept], first[is_kept], last[is_kept]
        order = np.argsort(first)
        self._document, self._first, self._last = document[order], first[order], last[order]
        self._target = target_s[self._first]

    def document_of(self, sentence: int) -> int:
        """Returns the index of the document that a sentence is in."""
        return int(self.filled[self._filled_starts.searchsorted(sentence, side="right") - 1])

    def __len__(self) -> int:
        return len(self._first)

    @overload
    def __getitem__(self, index: int) -> PairRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PairRow]: ...
    def __getitem__(self, index: int | slice) -> PairRow | list[PairRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return PairRow(
            rows=self,
            document=int(self._document[index]),
            first=int(self._first[index]),
            last=int(self._last[index]),
            target=int(self._target[index]),
        )


def next_sentence_pair(row: PairRow, rng: np.random.Generator) -> Pair:
    """Half of the time what follows in the document, half of the time text of another one."""
    a, b, follows = _split(row, rng)
    total = len(a) + len(b)
    if row.last - row.first == 1:
        part = _part_elsewhere(row, len(b), rng, is_filled=total >= row.target)
        b = b[: len(part)] if follows else part
    elif not follows:
        wanted = min(row.target, total) - len(a)
        b = _elsewhere(row, wanted, rng, is_filled=total >= row.target)
    return Pair(*_truncate(a, b, row.rows.max_tokens, rng), label=int(not follows))


def sentence_order_pair(row: PairRow, rng: np.random.Generator) -> Pair:
    """Two texts one after the other, half of the time in the wrong order."""
    a, b, is_ordered = _split(row, rng)
    a, b = _truncate(a, b, row.rows.max_tokens, rng)
    return Pair(a, b, 0) if is_ordered else Pair(b, a, 1)


def _split(row: PairRow, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
    """The row in two, after a sentence, or in its only sentence; and whether the label is 0."""
    borders = row.rows.borders
    start, stop = int(borders[row.first]), int(borders[row.last])
    if row.last - row.first > 1:
        middle = int(borders[rng.integers(row.first + 1, row.last)])
    else:
        # A sentence longer than the row: any part of it that fills the row.
        start += int(rng.integers(max(0, stop - start - row.target) + 1))
        stop = min(stop, start + row.target)
        middle = int(rng.integers(start + 1, stop))
    ids = row.rows.documents.ids
    return ids[start:middle], ids[middle:stop], bool(rng.random() < 0.5)


def _elsewhere(
    row: PairRow, wanted: int, rng: np.random.Generator, *, is_filled: bool
) -> np.ndarray:
    """Whole sentences of another document, of about `wanted` tokens if it has so many.

    In a row that is filled they are as many as reach it, like those of the row's own document; else
    they end at the border nearest to it, so that they are as long on average.
    """
    rows = row.rows
    borders = rows.borders
    begin = int(_foreign_sentences(row, 1, rng)[0])
    document = rows.document_of(begin)
    first, stop = int(rows.starts[document]), int(rows.stops[document])
    enough = int(borders.searchsorted(borders[stop] - wanted, side="right"))
    if begin >= enough:
        begin = int(rng.integers(first, max(first + 1, enough)))
    goal = int(borders[begin]) + wanted
    end = min(stop, int(borders.searchsorted(goal)))
    if not is_filled and end > begin + 1 and goal - borders[end - 1] < borders[end] - goal:
        end -= 1
    return rows.documents.ids[int(borders[begin]) : int(borders[end])]


def _part_elsewhere(
    row: PairRow, wanted: int, rng: np.random.Generator, *, is_filled: bool
) -> np.ndarray:
    """A part of a sentence of another document, as the true B of a row of one sentence is.

    It never has the sentence's first token (unless no sentence drawn has two), and has at most
    `wanted`. In a row that is not filled the true B ends with its sentence, so this one does too.
    """
    borders = row.rows.borders
    sentences = _foreign_sentences(row, _DRAWN_SENTENCES, rng)
    lengths = borders[sentences + 1] - borders[sentences]
    # The first that is longer than wanted, else the longest.
    pick = int(np.argmax(np.minimum(lengths, wanted + 1)))
    start, length = int(borders[sentences[pick]]), int(lengths[pick])
    size = max(1, min(wanted, length - 1))
    is_tail = size == wanted and not is_filled
    last_skip = length - size
    skip = last_skip if is_tail else int(rng.integers(min(1, last_skip), last_skip + 1))
    return row.rows.documents.ids[start + skip : start + skip + size]


def _foreign_sentences(row: PairRow, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sentences of other documents, each with the same probability: integers [count]."""
    rows = row.rows
    own, own_stop = int(rows.starts[row.document]), int(rows.stops[row.document])
    drawn = rng.integers(len(rows.borders) - 1 - (own_stop - own), size=count)
    return np.where(drawn >= own, drawn + own_stop - own, drawn)


def require_length(sequence_length: int) -> None:
    """Refuses a sequence that has no room for two texts.

    Raises:
      ConfigError: it has not.
    """
    if sequence_length < SHORTEST:
        raise ConfigError(
            f"data.sequence_length={sequence_length} is too short for [CLS] a [SEP] b [SEP]; "
            f"set {SHORTEST} or more (128 is usual)"
        )


def require_other_documents(rows: PairRows) -> None:
    """Refuses a corpus in which no text is from another document.

    Raises:
      DataError: there is one document alone.
    """
    if len(rows.filled) == 1:
        raise DataError(
            'objective.name="mlm_nsp" takes text from another document, and one side of the split '
            "has a single one; give more documents, raise data.heldout_fraction (0 holds out none) "
            'or use "mlm_sop"'
        )


def _truncate(
    a: np.ndarray, b: np.ndarray, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Takes tokens off the longer text, one after the other, at either end at random."""
    excess = len(a) + len(b) - most
    if excess <= 0:
        return a, b
    longer = min(excess, abs(len(a) - len(b)))
    from_a = (longer if len(a) > len(b) else 0) + (excess - longer) // 2
    from_b = excess - from_a
    return _cut_ends(a, from_a, rng), _cut_ends(b, from_b, rng)


def _cut_ends(text: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    front = int(rng.binomial(count, 0.5))
    return text[front : len(text) - (count - front)]
