"""An endless stream of documents as rows of one length, as `data/packing.py` cuts a corpus.

Whole documents wait until they fill a row. What is left of them then is the end of the newest one
alone, so the state is where that document begins in the stream, and how much of it has been read:

    documents   a b c | d e | f g h i j
    row 0       a b c d   e              behind it: the second document, 1 token of it taken
    row 1       e f g h   i              behind it: the third document, 3 taken
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.data.packing import PackedRow
from llmasos_jax.data.streaming.sources import DocumentStream
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_batch
from llmasos_jax.errors import DataError, TokenizerError

# Tokenised at a time: a tokenizer has threads.
_GROUP_CHARS = 200_000
_GROUP_DOCUMENTS = 64


@dataclass(frozen=True)
class _Document:
    """Token ids, the epoch they are of, and the stream's state before the document."""

    ids: np.ndarray
    epoch: int
    before: Any


class StreamRows:
    """Epoch after epoch of a stream, documents that are held out left out.

    Args:
      stream: of one epoch.
      tokenizer: what makes ids of a text; each document ends with its eos if it has one.
      sequence_length: T.
      heldout: hashes (`text_hash`) of the texts that are never given.
    """

    def __init__(
        self,
        stream: DocumentStream,
        tokenizer: Tokenizer,
        sequence_length: int,
        heldout: AbstractSet[bytes] = frozenset(),
    ) -> None:
        self._stream, self._tokenizer = stream, tokenizer
        self._length, self._heldout = sequence_length, heldout

    @property
    def files(self) -> Mapping[str, int]:
        """Those of the stream: bytes of each, by name."""
        return self._stream.files

    def read(self, state: Any = None) -> Iterator[tuple[PackedRow, dict[str, Any]]]:
        """Gives each row, arrays [T + 1], with the state behind it.

        Args:
          state: None is the beginning; else what came with a row, also after JSON.

        Raises:
          DataError: what the stream raises, or an epoch has no document.
        """
        width, taken = self._length + 1, 0 if state is None else state["taken"]
        waiting: list[np.ndarray] = []
        count = 0
        for document in self.documents(state):
            ids = document.ids
            while count + len(ids) - taken >= width:
                piece = ids[taken : taken + width - count]
                row = _row([*waiting, piece])
                # The row's last token is only a target: the next row reads it.
                taken += self._length - count
                waiting, count = [], 0
                place = {"epoch": document.epoch, "document": document.before, "taken": taken}
                yield row, place
            if taken < len(ids):
                waiting.append(ids[taken:])
                count += len(ids) - taken
            taken = 0

    def documents(self, state: Any = None) -> Iterator[_Document]:
        """Gives the documents from that of `state` on, as ids."""
        epoch, before = (0, None) if state is None else (state["epoch"], state["document"])
        while True:
            is_whole, is_empty = before is None, True
            for group in self._groups(before):
                texts = [text for text, _ in group]
                for ids, (_, place) in zip(self._encode(texts), group, strict=True):
                    if ids.size:
                        is_empty = False
                        yield _Document(ids, epoch, place)
            if is_whole and is_empty:
                raise DataError(
                    "the stream has no document with text besides those that are held out; give "
                    f"it more, or lower data.heldout_documents (now {len(self._heldout)})"
                )
            epoch, before = epoch + 1, None

    def _groups(self, before: Any) -> Iterator[list[tuple[str, Any]]]:
        """The rest of an epoch: texts, each with the state before it."""
        group: list[tuple[str, Any]] = []
        chars = 0
        for text, after in self._stream.read(before):
            if text.strip() and text_hash(text) not in self._heldout:
                group.append((text, before))
                chars += len(text)
            before = after
            if chars >= _GROUP_CHARS or len(group) >= _GROUP_DOCUMENTS:
                yield group
                group, chars = [], 0
        if group:
            yield group

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return encode_documents(texts, self._tokenizer)


def encode_documents(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of each text, with the tokenizer's eos: int64 arrays.

    Raises:
      TokenizerError: an id is outside the vocabulary.
    """
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    arrays = [np.array([*ids, *end], np.int64) for ids in encode_batch(tokenizer, list(texts))]
    for ids in arrays:
        if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            raise TokenizerError(
                f"the tokenizer gave ids from {ids.min()} to {ids.max()}, its vocab_size is "
                f"{tokenizer.vocab_size}; correct the tokenizer"
            )
    return arrays


def text_hash(text: str) -> bytes:
    """What a held-out text is known by.

    Example:
      >>> text_hash("a") == text_hash("a"), len(text_hash("a"))
      (True, 16)
    """
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _row(pieces: Sequence[np.ndarray]) -> PackedRow:
    lengths = [len(piece) for piece in pieces]
    return PackedRow(
        tokens=np.concatenate(pieces).astype(np.int32),
        segment_ids=np.repeat(np.arange(1, len(pieces) + 1, dtype=np.int32), lengths),
        positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
    )
