"""Documents as ids, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmasos_jax.data.sentences import split_sentences
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_batch
from llmasos_jax.errors import TokenizerError

_BATCH_CHARS = 2_000_000  # characters encoded at a time


@dataclass(frozen=True)
class Encoded:
    """A few documents.

    Attributes:
      ids: int64 [tokens], one document after the other.
      lengths: int64 [documents].
      sentences: int64, where each sentence ends in `ids`; empty where none are looked for.
      size: characters.
    """

    ids: np.ndarray
    lengths: np.ndarray
    sentences: np.ndarray
    size: int


def encode_documents(
    documents: Sequence[str], indices: Sequence[int], tokenizer: Tokenizer, *, by_sentence: bool
) -> Iterator[Encoded]:
    """Yields the documents' ids, in order.

    Args:
      documents: the source.
      indices: which of them.
      tokenizer: what makes ids of them; each document ends with its eos, if it has one.
      by_sentence: tokenises each sentence alone, with neither bos nor eos. What gives no id
        (blanks, for many tokenizers) is no sentence.

    Raises:
      TokenizerError: an id outside the tokenizer's own vocabulary.
    """
    encode = _sentences if by_sentence else _whole
    for batch in _batches(documents, indices):
        yield encode(batch, tokenizer)


def _whole(batch: Sequence[str], tokenizer: Tokenizer) -> Encoded:
    end = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], dtype=np.int64)
    parts: list[np.ndarray] = []
    for ids in encode_batch(tokenizer, batch):
        parts += (np.asarray(ids, dtype=np.int64), end)
    lengths = np.array([len(p) for p in parts[::2]], dtype=np.int64) + len(end)
    ids = _checked(np.concatenate(parts), tokenizer)
    return Encoded(ids, lengths, np.zeros(0, np.int64), sum(map(len, batch)))


def _sentences(batch: Sequence[str], tokenizer: Tokenizer) -> Encoded:
    skipped = int(tokenizer.adds_bos)
    sentences = [split_sentences(document) for document in batch]
    encoded = encode_batch(tokenizer, [s for pieces in sentences for s in pieces])
    parts = [np.asarray(ids, dtype=np.int64)[skipped:] for ids in encoded]
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    # Tokens before each document's first sentence, and after all.
    before = np.concatenate([[0], np.cumsum(sizes)])
    borders = np.cumsum([0, *map(len, sentences)])
    ids = _checked(np.concatenate([np.zeros(0, np.int64), *parts]), tokenizer)
    ends = np.cumsum(sizes[sizes > 0])
    return Encoded(ids, np.diff(before[borders]), ends, sum(map(len, batch)))


def _checked(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise TokenizerError(
            f"the tokenizer gave id {ids.max() if ids.min() >= 0 else ids.min()}, "
            f"its vocab_size is {tokenizer.vocab_size}; ids go from 0 to vocab_size - 1: "
            "correct the tokenizer"
        )
    return ids


def _batches(documents: Sequence[str], indices: Sequence[int]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for i in indices:
        batch.append(documents[i])
        chars += len(batch[-1])
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
