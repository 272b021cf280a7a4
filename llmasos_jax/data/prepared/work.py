"""The two kinds of work that preparing is made of, each on a fixed range of documents."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.files import renamed
from llmasos_jax.data.prepared.arrays import GrowingArray
from llmasos_jax.data.prepared.encode import encode_documents
from llmasos_jax.data.prepared.manifest import Shard, StoredFile, shard_from
from llmasos_jax.data.scan import Scan, scan
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer

# What reading a damaged file of NumPy or JSON may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Bench:
    """What work is done with.

    Attributes:
      documents: the source.
      tokenizer: makes ids.
      data: the config's.
      by_sentence: whether sentences are kept.
      folder: where the results go.
    """

    documents: Sequence[str]
    tokenizer: Tokenizer
    data: DataConfig
    by_sentence: bool
    folder: Path


@dataclass(frozen=True)
class ScanTask:
    """Looks at documents `first` to `last - 1`; one unit of progress is a document."""

    number: int
    first: int
    last: int

    def path(self, folder: Path) -> Path:
        """Where the result is."""
        return folder / f"scan-{self.number:05d}.npz"

    def is_done(self, folder: Path) -> bool:
        """Whether it is there, and whole."""
        try:
            return len(self.result(folder).sizes) == self.size
        except UNREADABLE:
            return False

    def run(self, bench: Bench, advance: Callable[[int], None]) -> None:
        """Writes the scan."""
        found = scan(bench.documents, range(self.first, self.last), bench.data, advance)
        with renamed(self.path(bench.folder)) as path, open(path, "wb") as file:
            np.savez(file, **found.arrays())  # pyright: ignore[reportArgumentType]

    def result(self, folder: Path) -> Scan:
        """Reads the scan."""
        # Opened here, as NumPy leaves what it cannot read open.
        with open(self.path(folder), "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Scan(**arrays)

    @property
    def size(self) -> int:
        """Units of progress."""
        return self.last - self.first


@dataclass(frozen=True)
class EncodeTask:
    """Writes one shard; a unit of progress is a character.

    Attributes:
      name: of the shard, `train-00000`.
      indices: int64, its documents.
      size: units of progress, about.
    """

    name: str
    indices: np.ndarray
    size: int

    def record(self, folder: Path) -> Path:
        """The file that says that the shard is whole; it is written last."""
        return folder / f"{self.name}.json"

    def is_done(self, folder: Path) -> bool:
        """Whether the shard is there with the hashes that it was written with."""
        try:
            shard = self.result(folder)
        except UNREADABLE:
            return False
        return all(file.is_in(folder) for file in shard.files)

    def result(self, folder: Path) -> Shard:
        """Reads what the shard is."""
        return shard_from(json.loads(self.record(folder).read_text(encoding="utf-8")))

    def run(self, bench: Bench, advance: Callable[[int], None]) -> None:
        """Writes the shard's files, then its record."""
        at = lambda kind: bench.folder / f"{self.name}_{kind}.npy"
        kinds = {"ids": ids_dtype(bench.tokenizer), "lengths": np.dtype("<u4")}
        if bench.by_sentence:
            kinds["sentences"] = np.dtype("<i8")
        tokens = documents = 0
        with contextlib.ExitStack() as stack:
            arrays = {
                kind: stack.enter_context(
                    GrowingArray(stack.enter_context(renamed(at(kind))), dtype)
                )
                for kind, dtype in kinds.items()
            }
            encoded = encode_documents(
                bench.documents,
                self.indices.tolist(),
                bench.tokenizer,
                by_sentence=bench.by_sentence,
            )
            for part in encoded:
                arrays["ids"].append(part.ids)
                arrays["lengths"].append(part.lengths)
                if bench.by_sentence:
                    arrays["sentences"].append(tokens + part.sentences)
                tokens += len(part.ids)
                documents += len(part.lengths)
                advance(part.size)
        files = {kind: StoredFile.of(at(kind)) for kind in kinds}
        shard = Shard(documents, tokens, **files)
        with renamed(self.record(bench.folder)) as path:
            path.write_text(json.dumps(dataclasses.asdict(shard), indent=1), encoding="utf-8")


Task = ScanTask | EncodeTask


def ids_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Two bytes where they are enough, else four."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
