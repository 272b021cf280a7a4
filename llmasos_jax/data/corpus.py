"""A source as token ids, made once and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.files import build_folder
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.sentences import split_sentences
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.split import split_documents
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_batch, fingerprint
from llmasos_jax.errors import DataError, TokenizerError
from llmasos_jax.progress import Progress

_VERSION = 1  # of the files in the cache
_SENTENCES_VERSION = 1  # of how a text is cut into sentences
_BATCH_CHARS = 2_000_000  # characters encoded at a time


@dataclass(frozen=True)
class Corpus:
    """Token ids of both sides of the split.

    Attributes:
      train, heldout: the documents.
      digest: hash of all ids; the same on every machine with the same text and tokenizer.
    """

    train: TokenDocuments
    heldout: TokenDocuments
    digest: str


def open_corpus(
    documents: Documents,
    tokenizer: Tokenizer,
    data: DataConfig,
    cache: Path,
    *,
    by_sentence: bool = False,
) -> Corpus:
    """Tokenises the documents, or finds that done in `cache`.

    Each document ends with the tokenizer's eos if it has one. The arrays are mapped from disk, not
    read into memory.

    Args:
      documents: the text.
      tokenizer: what makes ids of it.
      data: decides on the split.
      cache: folder for the arrays.
      by_sentence: keeps where sentences end (`TokenDocuments.sentences`): each is tokenised alone,
        with neither bos nor eos. What gives no id (blanks, for many tokenizers) is no sentence.

    Raises:
      DataError: no document has text, or too few have to hold any out; the cache is damaged.
      TokenizerError: the tokenizer gives an id outside its own vocabulary.
    """
    parts = (documents.key, fingerprint(tokenizer), data.seed, data.heldout_fraction, _VERSION)
    if by_sentence:
        parts += (f"sentences {_SENTENCES_VERSION}",)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = cache / f"corpus-{key}"
    if not folder.is_dir():
        build_folder(folder, lambda path: _write(path, documents, tokenizer, data, by_sentence))
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        train, heldout = (_read(folder, side, by_sentence) for side in ("train", "heldout"))
        return Corpus(train, heldout, meta["digest"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"cached tokens in {folder} are damaged ({error}); delete it") from error


def _read(folder: Path, side: str, by_sentence: bool) -> TokenDocuments:
    offsets = np.load(folder / f"{side}_offsets.npy", allow_pickle=False)
    ids = _map(folder / f"{side}_ids.npy")
    if ids.shape != (offsets[-1],):
        raise ValueError(f"{side}_ids.npy has {ids.shape} ids, expected {offsets[-1]}")
    if not by_sentence:
        return TokenDocuments(ids, offsets)
    sentences = _map(folder / f"{side}_sentences.npy")
    if not sentences.size or sentences[-1] != offsets[-1]:
        raise ValueError(f"{side}_sentences.npy does not end at token {offsets[-1]}")
    return TokenDocuments(ids, offsets, sentences)


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        return np.load(path, allow_pickle=False)


def _write(
    folder: Path, documents: Documents, tokenizer: Tokenizer, data: DataConfig, by_sentence: bool
) -> None:
    split = split_documents(documents, data)
    digest = hashlib.sha256()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    encode = _encode_sentences if by_sentence else _encode
    with Progress("Tokenising", total=len(split.train) + len(split.heldout)) as progress:
        for side, indices in (("train", split.train), ("heldout", split.heldout)):
            offsets = [0]
            with contextlib.ExitStack() as stack:
                ids = stack.enter_context(_Growing(folder / f"{side}_ids.npy", dtype))
                sentences = None
                if by_sentence:
                    path = folder / f"{side}_sentences.npy"
                    sentences = stack.enter_context(_Growing(path, np.dtype("<i8")))
                    sentences.append(np.zeros(1))
                for array, ends in encode(documents, indices, tokenizer, progress):
                    digest.update(ids.append(array))
                    if sentences is not None:
                        digest.update(sentences.append(offsets[-1] + ends))
                    offsets.append(offsets[-1] + len(array))
            np.save(folder / f"{side}_offsets.npy", np.array(offsets, dtype=np.int64))
            digest.update(np.array(offsets, dtype=np.int64).tobytes())
    meta = {"version": _VERSION, "digest": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


class _Growing:
    """A .npy file of one axis whose length is known only at the end."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._file: IO[bytes] = open(path, "wb")
        self._dtype, self._count = dtype, 0
        self._write_header()

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        # A header is as long for any count, so it can be written again at the end.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, array: np.ndarray) -> bytes:
        """Writes more elements; returns their bytes."""
        raw = array.astype(self._dtype).tobytes()
        self._file.write(raw)
        self._count += len(array)
        return raw


def _encode(
    documents: Documents, indices: Sequence[int], tokenizer: Tokenizer, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of each document, with eos; no sentences."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for batch in _batches(documents, indices):
        for ids in encode_batch(tokenizer, batch):
            array = np.concatenate([np.asarray(ids, dtype=np.int64), np.array(end, dtype=np.int64)])
            yield _checked(array, tokenizer), np.zeros(0, dtype=np.int64)
        progress.advance(len(batch))


def _encode_sentences(
    documents: Documents, indices: Sequence[int], tokenizer: Tokenizer, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of each document, and where each of its sentences ends in them."""
    skipped = int(tokenizer.adds_bos)
    for batch in _batches(documents, indices):
        sentences = [split_sentences(document) for document in batch]
        encoded = iter(encode_batch(tokenizer, [s for pieces in sentences for s in pieces]))
        for pieces in sentences:
            parts = [np.asarray(next(encoded), dtype=np.int64)[skipped:] for _ in pieces]
            array = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
            lengths = np.array([len(part) for part in parts], dtype=np.int64)
            yield _checked(array, tokenizer), np.cumsum(lengths[lengths > 0])
        progress.advance(len(batch))


def _checked(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise TokenizerError(
            f"the tokenizer gave id {ids.max() if ids.min() >= 0 else ids.min()}, "
            f"its vocab_size is {tokenizer.vocab_size}; ids go from 0 to vocab_size - 1: "
            "correct the tokenizer"
        )
    return ids


def _batches(documents: Documents, indices: Sequence[int]) -> Iterator[list[str]]:
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
