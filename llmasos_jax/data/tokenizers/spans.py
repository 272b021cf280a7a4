"""Which ids of a text come from given parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_marked

Span = tuple[int, int]  # characters from the first to before the second


@dataclass(frozen=True)
class SpanIds:
    """The ids of a text.

    Attributes:
      ids: of the whole text, as if there were no parts.
      is_inside: bool, as many: whether an id's text is all in one of the parts.
      num_shared: ids with text of both sides of a border; they count as outside.
    """

    ids: list[int]
    is_inside: np.ndarray
    num_shared: int


@runtime_checkable
class PlacingTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows where in a text each id comes from."""

    def encode_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """Returns the ids of each text, special tokens written out in it, and their characters."""
        ...


def encode_spans(
    tokenizer: Tokenizer, texts: Sequence[str], spans: Sequence[Sequence[Span]]
) -> Iterator[SpanIds]:
    """Encodes texts as `encode_marked` does, and says which ids come from parts of them.

    Args:
      tokenizer: any; one without `encode_places` also encodes what stands before and after each
        border alone: ids that come out as in the whole text are on that side.
      texts: what to encode.
      spans: for each text its parts, rising, apart.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> found = next(encode_spans(ByteTokenizer(), ["ab é"], [[(3, 4)]]))
      >>> found.ids, found.is_inside.tolist()
      ([256, 97, 98, 32, 195, 169], [False, False, False, False, True, True])
    """
    if isinstance(tokenizer, PlacingTokenizer):
        found = tokenizer.encode_places(texts)
        for text, (ids, places), parts in zip(texts, found, spans, strict=True):
            yield _by_places(text, ids, places, parts)
    else:
        for text, parts in zip(texts, spans, strict=True):
            yield _by_sides(tokenizer, text, parts)


def _by_places(text: str, ids: list[int], places: Sequence[Span], parts: Sequence[Span]) -> SpanIds:
    starts, ends = np.array(places, dtype=np.int64).reshape(-1, 2).T.copy()
    # A token's reported place may leave out its leading space: it begins where those before it end.
    before = np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]
    for i in np.flatnonzero(starts > before):
        if not text[before[i] : starts[i]].strip(" "):
            starts[i] = before[i]
    is_inside = np.zeros(len(ids), dtype=bool)
    num_shared = 0
    for start, stop in parts:
        inside = (starts >= start) & (ends <= stop) & (starts < stop)
        num_shared += int(np.sum((starts < stop) & (ends > start) & ~inside))
        is_inside |= inside
    return SpanIds(ids, is_inside, num_shared)


def _by_sides(tokenizer: Tokenizer, text: str, parts: Sequence[Span]) -> SpanIds:
    has_bos = tokenizer.adds_bos and not hasattr(tokenizer, "encode_marked")
    ids = [int(i) for i in encode_marked(tokenizer, text)]
    is_inside = np.zeros(len(ids), dtype=bool)
    num_shared = 0
    for start, stop in parts:
        before, within = (
            len(_common(ids, encode_marked(tokenizer, text[:n]))) for n in (start, stop)
        )
        after = encode_marked(tokenizer, text[start:])[1 if has_bos else 0 :]
        first = len(ids) - len(_common(ids[::-1], after[::-1]))
        is_inside[first:within] = True
        num_shared += max(first - before, 0)
    return SpanIds(ids, is_inside, num_shared)


def _common(a: Sequence[int], b: Sequence[int]) -> Sequence[int]:
    """The ids that both begin with."""
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return a[: min(len(a), len(b)) if count is None else count]
