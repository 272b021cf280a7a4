"""What a prepared folder says of itself: `manifest.json`, written last."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.data.scan import Dropped
from llmasos_jax.errors import DataError

FORMAT_VERSION = 2  # 1 has no hashes of itself, the settings and the tokenizer
MANIFEST, SETTINGS, PLAN, TOKENIZER = "manifest.json", "settings.json", "plan.npz", "tokenizer"


@dataclass(frozen=True)
class StoredFile:
    """A file of the folder.

    Attributes:
      file: its path in the folder.
      bytes: its size.
      sha256: of its content.
    """

    file: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, folder: Path | None = None) -> StoredFile:
        """Measures a file; `folder` is the prepared one where it is not the file's own."""
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.name if folder is None else path.relative_to(folder).as_posix()
        return cls(name, path.stat().st_size, digest)

    def is_in(self, folder: Path) -> bool:
        """Whether a file of this name, size and hash is there."""
        path = folder / self.file
        is_there = path.is_file() and path.stat().st_size == self.bytes
        return is_there and StoredFile.of(path, folder) == self


@dataclass(frozen=True)
class Shard:
    """A range of one side's documents.

    Attributes:
      documents, tokens: in it.
      ids: unsigned integers [tokens].
      lengths: uint32 [documents], tokens of each.
      sentences: int64, where sentences end, counted from the shard's first token; None where that
        was not kept.
    """

    documents: int
    tokens: int
    ids: StoredFile
    lengths: StoredFile
    sentences: StoredFile | None = None

    @property
    def files(self) -> list[StoredFile]:
        """All of them."""
        return [f for f in (self.ids, self.lengths, self.sentences) if f is not None]


@dataclass(frozen=True)
class Side:
    """What is trained on, or what is held out.

    Attributes:
      documents, tokens: in all shards.
      shards: in order.
      offsets: int64 [documents + 1], where documents begin, over all shards.
      sentences: int64, as `TokenDocuments.sentences`; None where that was not kept.
    """

    documents: int
    tokens: int
    shards: tuple[Shard, ...]
    offsets: StoredFile
    sentences: StoredFile | None = None


@dataclass(frozen=True)
class Manifest:
    """All of it.

    Attributes:
      settings: all that the ids depend on, by name (`Preparation.settings`).
      tokenizer: its entry, as in a `model.json`; its files are in `tokenizer/`.
      source_documents: how many there were before any was dropped.
      dropped: those that are on neither side, by reason.
      digest: hash of all ids; the same however many shards or processes there are.
      train, heldout: both sides.
      plan: which documents are on which side.
      kept: the settings and the tokenizer's files; a manifest of version 1 has none.
      format_version: that it was written in.
    """

    settings: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    source_documents: int
    dropped: Mapping[str, Dropped]
    digest: str
    train: Side
    heldout: Side
    plan: StoredFile
    kept: tuple[StoredFile, ...] = ()
    format_version: int = FORMAT_VERSION

    @property
    def by_sentence(self) -> bool:
        """Whether sentences are kept."""
        return bool(self.settings["by_sentence"])

    def files(self) -> Iterator[StoredFile]:
        """Every file but the manifest."""
        yield from self.kept
        yield self.plan
        for side in (self.train, self.heldout):
            for shard in side.shards:
                yield from shard.files
            yield side.offsets
            if side.sentences is not None:
                yield side.sentences

    def to_json(self) -> str:
        """The text of `manifest.json`, with its own hash."""
        values = dataclasses.asdict(self)
        values["sha256"] = _digest(values)
        return json.dumps(values, ensure_ascii=False, indent=1) + "\n"

    def faults(self) -> list[str]:
        """Where its numbers do not agree with one another."""
        return [
            f"{MANIFEST} says {said:,} {what} of {name}, its shards have {found:,}"
            for name, side in (("train", self.train), ("heldout", self.heldout))
            for what in ("documents", "tokens")
            if (said := getattr(side, what))
            != (found := sum(getattr(s, what) for s in side.shards))
        ]


class DamagedManifestError(DataError):
    """A manifest that is not what was written.

    Attributes:
      path: of it.
      why: what is wrong with it.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} is damaged ({why}); llmasos data prepare with the same config makes it again"
        )
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.why)


def read_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`.

    Raises:
      DamagedManifestError: it is not what was written.
      DataError: it is not there, not readable, or of a newer version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        has_begun = (folder / SETTINGS).is_file()
        raise DataError(
            f"{folder} is not prepared to the end; run llmasos data prepare with the same config"
            if has_begun
            else f"{folder} is no prepared folder (no {MANIFEST}); llmasos data prepare makes one"
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); see to its permissions or the disk"
        ) from error
    try:
        values = json.loads(raw.decode("utf-8"))
        said, version = values.pop("sha256", None), values["format_version"]
        if version not in range(1, FORMAT_VERSION + 1):
            raise DataError(
                f"{path} has format_version {version}, this program reads 1 to {FORMAT_VERSION}; "
                "prepare the data again, or use the program that wrote it"
            )
        if version > 1 and _digest(values) != said:
            raise ValueError("it has another SHA-256 than it says")
        values["kept"] = tuple(StoredFile(**file) for file in values.get("kept", ()))
        values["dropped"] = dropped_from(values["dropped"])
        values["plan"] = StoredFile(**values["plan"])
        for side in ("train", "heldout"):
            values[side] = side_from(values[side])
        return Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else repr(error)
        raise DamagedManifestError(path, why) from error


def dropped_from(values: Mapping[str, Any]) -> dict[str, Dropped]:
    """What was dropped, from JSON."""
    return {n: Dropped(**{**d, "examples": tuple(d["examples"])}) for n, d in values.items()}


def side_from(values: Mapping[str, Any]) -> Side:
    """A side from JSON."""
    shards = tuple(shard_from(shard) for shard in values["shards"])
    return Side(**{**_with_files(values), "shards": shards})


def shard_from(values: Mapping[str, Any]) -> Shard:
    """A shard from JSON."""
    return Shard(**_with_files(values))


def _digest(values: Mapping[str, Any]) -> str:
    """Of what `manifest.json` says, however it is written down."""
    plain = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _with_files(values: Mapping[str, Any]) -> dict[str, Any]:
    is_file = lambda value: isinstance(value, dict) and "sha256" in value
    return {k: StoredFile(**v) if is_file(v) else v for k, v in values.items()}
