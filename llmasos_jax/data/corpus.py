"""A source as token ids, made once and kept on disk."""

from __future__ import annotations

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
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.split import split_documents
from llmasos_jax.data.tokenizer import Tokenizer, encode_batch, fingerprint
from llmasos_jax.errors import DataError, TokenizerError
from llmasos_jax.progress import Progress

_VERSION = 1  # of the files in the cache
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
    documents: Documents, tokenizer: Tokenizer, data: DataConfig, cache: Path
) -> Corpus:
    """Tokenises the documents, or finds that done in `cache`.

    Each document ends with the tokenizer's eos if it has one. The arrays are mapped from disk, not
    read into memory.

    Raises:
      DataError: no document has text, or too few have to hold any out; the cache is damaged.
      TokenizerError: the tokenizer gives an id outside its own vocabulary.
    """
    parts = (documents.key, fingerprint(tokenizer), data.seed, data.heldout_fraction, _VERSION)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = cache / f"corpus-{key}"
    if not folder.is_dir():
        build_folder(folder, lambda path: _write(path, documents, tokenizer, data))
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return Corpus(_read(folder, "train"), _read(folder, "heldout"), meta["digest"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"cached tokens in {folder} are damaged ({error}); delete it") from error


def _read(folder: Path, side: str) -> TokenDocuments:
    offsets = np.load(folder / f"{side}_offsets.npy", allow_pickle=False)
    path = folder / f"{side}_ids.npy"
    # An array without elements cannot be mapped.
    mode = "r" if offsets[-1] > 0 else None
    ids = np.load(path, mmap_mode=mode, allow_pickle=False)
    if ids.shape != (offsets[-1],):
        raise ValueError(f"{path.name} has {ids.shape} ids, expected {offsets[-1]}")
    return TokenDocuments(ids, offsets)


def _write(folder: Path, documents: Documents, tokenizer: Tokenizer, data: DataConfig) -> None:
    split = split_documents(documents, data)
    digest = hashlib.sha256()
    with Progress("Tokenising", total=len(split.train) + len(split.heldout)) as progress:
        for side, indices in (("train", split.train), ("heldout", split.heldout)):
            lengths = [0]
            dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
            with open(folder / f"{side}_ids.npy", "wb") as file:
                _write_header(file, dtype, 0)
                for ids in _encode(documents, indices, tokenizer, progress):
                    raw = ids.astype(dtype).tobytes()
                    digest.update(raw)
                    file.write(raw)
                    lengths.append(len(ids))
                offsets = np.cumsum(lengths, dtype=np.int64)
                file.seek(0)
                _write_header(file, dtype, int(offsets[-1]))
            np.save(folder / f"{side}_offsets.npy", offsets)
            digest.update(offsets.tobytes())
    meta = {"version": _VERSION, "digest": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _write_header(file: IO[bytes], dtype: np.dtype, count: int) -> None:
    """Writes a .npy header; it is as long for any count, so it can be written again at the end."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _encode(
    documents: Documents, indices: Sequence[int], tokenizer: Tokenizer, progress: Progress
) -> Iterator[np.ndarray]:
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for batch in _batches(documents, indices):
        for ids in encode_batch(tokenizer, batch):
            array = np.concatenate([np.asarray(ids, dtype=np.int64), np.array(end, dtype=np.int64)])
            if array.size and not 0 <= array.min() <= array.max() < tokenizer.vocab_size:
                raise TokenizerError(
                    f"the tokenizer gave id {array.max() if array.min() >= 0 else array.min()}, "
                    f"its vocab_size is {tokenizer.vocab_size}; ids go from 0 to vocab_size - 1: "
                    "correct the tokenizer"
                )
            yield array
        progress.advance(len(batch))


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
