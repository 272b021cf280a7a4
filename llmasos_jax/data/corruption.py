"""Span corruption: T5 reads a text with gaps and writes what stood in them.

    text      Thank you for inviting me to your party last week .
    encoder   Thank you <X> me to your party <Y> week . </s>
    decoder   <X> for inviting <Y> last </s>                       read shifted right, after <pad>

A row is as many tokens of text as fill the encoder: the number of tokens taken out, and of gaps,
is that of the row's length alone, only their places are drawn, so nothing is cut and (but for the
corpus's last row) nothing is padded. Texts stand
one after the other without a sign between them, and every token of a row sees the whole row: rows
are one segment, as in T5's own training. The tokens that begin and end each document of the corpus
are left out; unknown tokens are text like any other.

References:
  Raffel et al., 2019, arXiv 1910.10683, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from llmasos_jax.config.schema import ObjectiveConfig
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.errors import ConfigError


@dataclass(frozen=True)
class Lengths:
    """How long everything is.

    Attributes:
      text: tokens of a row before it is corrupted.
      encoder: tokens that the encoder reads, with sentinels and the end.
      decoder: tokens that the decoder writes, with sentinels and the end.
      spans: gaps.
    """

    text: int
    encoder: int
    decoder: int
    spans: int


def noise_counts(length: int, cfg: ObjectiveConfig) -> tuple[int, int]:
    """Returns how many of `length` tokens are taken out, and in how many spans.

    At least one token stays and, where there are two, one is taken out; each span has one token at
    least, and one that stays before it.

    Example:
      >>> noise_counts(568, ObjectiveConfig())
      (85, 28)
    """
    tokens = min(max(round(length * cfg.mask_rate), 1), length - 1)
    if tokens < 1:
        return 0, 0
    spans = max(1, round(tokens / cfg.span_length))
    return tokens, min(spans, tokens, length - tokens)


def corrupted_lengths(sequence_length: int, cfg: ObjectiveConfig) -> Lengths:
    """Returns the lengths for an encoder of `sequence_length` tokens: the longest text that fits.

    Raises:
      ConfigError: no text of two tokens fits.

    Example:
      >>> corrupted_lengths(512, ObjectiveConfig())
      Lengths(text=568, encoder=512, decoder=114, spans=28)
    """

    def lengths(text: int) -> Lengths:
        tokens, spans = noise_counts(text, cfg)
        return Lengths(text, text - tokens + spans + 1, tokens + spans + 1, spans)

    if sequence_length < 3:
        raise ConfigError(
            f"data.sequence_length={sequence_length} is too short for a token, a gap and the end; "
            "set 3 or more (512 is usual)"
        )
    if cfg.mask_rate >= 1.0:
        raise ConfigError(
            f"objective.mask_rate={cfg.mask_rate} leaves nothing of a text to read; set it below 1 "
            "(0.15 is T5's)"
        )
    # The encoder's length never falls when the text grows.
    text = 2
    step = sequence_length
    while step:
        while lengths(text + step).encoder <= sequence_length:
            text += step
        step //= 2
    return lengths(text)


class TextRows(Sequence[np.ndarray]):
    """The text of a corpus in rows of one length: int32 [text], the last one may be shorter.

    Args:
      documents: the corpus.
      length: tokens of a row.
      ends: ids that may begin or end a document, and are left out there.

    Example:
      >>> rows = TextRows(TokenDocuments.from_lists([[1, 7, 8, 2], [1, 9, 2], [5]]), 3, ends=(1, 2))
      >>> [row.tolist() for row in rows]
      [[7, 8, 9], [5]]
    """

    def __init__(self, documents: TokenDocuments, length: int, ends: Sequence[int]) -> None:
        offsets, ids = documents.offsets, documents.ids
        starts, stops = offsets[:-1], offsets[1:]
        for trim_start in (True, False):
            filled = np.flatnonzero(stops > starts)
            edge = ids[starts[filled] if trim_start else stops[filled] - 1]
            is_end = np.zeros(len(starts), dtype=np.int64)
            is_end[filled] = np.isin(edge, ends)
            starts, stops = (starts + is_end, stops) if trim_start else (starts, stops - is_end)
        self.length = length
        self._ids = ids
        self._sums = np.concatenate([[0], np.cumsum(stops - starts)])
        # Where token t of the text is in the ids: t + shift of its document.
        self._shift = starts - self._sums[:-1]

    def __len__(self) -> int:
        return -(-int(self._sums[-1]) // self.length)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self.length
        text = np.arange(start, min(start + self.length, int(self._sums[-1])))
        document = self._sums.searchsorted(text, side="right") - 1
        return self._ids[text + self._shift[document]].astype(np.int32)


def draw_spans(length: int, cfg: ObjectiveConfig, rng: np.random.Generator) -> np.ndarray:
    """Returns bool [length]: what is taken out. Stretches that stay and spans take turns.

    The lengths of the spans, and of what stays between them, are drawn so that every way of sharing
    the tokens out is as likely; the first token stays.

    Example:
      >>> draw_spans(10, ObjectiveConfig(mask_rate=0.4), np.random.default_rng(0)).sum()
      np.int64(4)
    """
    tokens, spans = noise_counts(length, cfg)
    if not spans:
        return np.zeros(length, dtype=bool)
    turns = np.empty(2 * spans, dtype=np.int64)
    turns[::2] = _share_out(length - tokens, spans, rng)
    turns[1::2] = _share_out(tokens, spans, rng)
    return np.repeat(np.arange(2 * spans) % 2 == 1, turns)


def _share_out(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Shares `count` tokens out to `parts` parts of one token or more."""
    cuts = np.sort(rng.permutation(count - 1)[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=count)


def corrupt(
    text: np.ndarray, is_noise: np.ndarray, sentinels: np.ndarray, end_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the encoder reads and what the decoder writes.

    Args:
      text: int32 [text].
      is_noise: bool [text], what is taken out.
      sentinels: int32, as many as there are spans, or more.
      end_id: ends both.

    Example:
      >>> is_noise = np.array([False, True, True, False, True])
      >>> read, written = corrupt(np.array([5, 6, 7, 8, 9]), is_noise, np.array([99, 98]), 1)
      >>> read.tolist(), written.tolist()
      ([5, 99, 8, 98, 1], [99, 6, 7, 98, 9, 1])
    """
    is_first = is_noise & ~np.concatenate([[False], is_noise[:-1]])
    span = np.cumsum(is_first) - 1
    read = np.where(is_first, sentinels[span], text)[~is_noise | is_first]
    # The n-th token taken out, of span s, has s + 1 sentinels before it.
    span_n, is_first_n = span[is_noise], is_first[is_noise]
    place_n = np.arange(span_n.size) + span_n + 1
    written = np.empty(span_n.size + int(is_first_n.sum()), dtype=np.int32)
    written[place_n] = text[is_noise]
    written[place_n[is_first_n] - 1] = sentinels[: int(is_first_n.sum())]
    return np.append(read, end_id), np.append(written, end_id)
