"""What preparing came to, and what checking found, as people read it."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.data.prepared.manifest import Manifest
from llmasos_jax.data.scan import Dropped


@dataclass(frozen=True)
class Prepared:
    """A prepared folder.

    Attributes:
      folder: where it is; `data.source="prepared"`, `data.path` this.
      is_new: whether this call did any work.
      duration_s: seconds it took.
      source_documents: read, before any was dropped.
      train_documents, heldout_documents: on both sides.
      train_tokens, heldout_tokens: in them.
      shards: of both sides.
      bytes: of all files.
      digest: hash of all ids.
      dropped: documents on neither side, by reason.
    """

    folder: Path
    is_new: bool
    duration_s: float
    source_documents: int
    train_documents: int
    heldout_documents: int
    train_tokens: int
    heldout_tokens: int
    shards: int
    bytes: int
    digest: str
    dropped: Mapping[str, Dropped]

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, is_new: bool, duration_s: float) -> Prepared:
        """What a manifest says."""
        return cls(
            folder=folder,
            is_new=is_new,
            duration_s=duration_s,
            source_documents=manifest.source_documents,
            train_documents=manifest.train.documents,
            heldout_documents=manifest.heldout.documents,
            train_tokens=manifest.train.tokens,
            heldout_tokens=manifest.heldout.tokens,
            shards=len(manifest.train.shards) + len(manifest.heldout.shards),
            bytes=sum(file.bytes for file in manifest.files()),
            digest=manifest.digest,
            dropped=manifest.dropped,
        )

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, as a table."""
        took = f"{self.duration_s:.1f} s" if self.is_new else "was there already"
        sides = [
            (name, f"{documents:,} documents, {tokens:,} tokens")
            for name, documents, tokens in (
                ("train", self.train_documents, self.train_tokens),
                ("held out", self.heldout_documents, self.heldout_tokens),
            )
        ]
        return [
            ("folder", f"{self.folder} ({took})"),
            ("read", f"{self.source_documents:,} documents"),
            *sides,
            *dropped_rows(self.dropped),
            ("on disk", f"{self.shards} shards, {self.bytes / 1e6:,.1f} MB"),
            ("digest", self.digest),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:<10} {value}".rstrip() for name, value in self.rows())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td><pre>{html.escape(value)}</pre></td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{cells}</table>"

    def to_dict(self) -> dict[str, Any]:
        """All values under their names, for JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def dropped_rows(dropped: Mapping[str, Dropped]) -> list[tuple[str, str]]:
    """A line for each reason, and below it how the first documents begin."""
    rows: list[tuple[str, str]] = []
    for reason, group in dropped.items():
        rows.append(("dropped", f"{group.documents:,} ({group.share:.2%}) {reason}"))
        for example in group.examples:
            of = f" (of {example['of']:,})" if "of" in example else ""
            rows.append(("", f"  document {example['document']:,}{of}: {example['text']}"))
    return rows


@dataclass(frozen=True)
class Checked:
    """Whether a prepared folder is what was written.

    Attributes:
      folder: where it is.
      files: that were hashed.
      bytes: of them.
      damaged: a line for each file that is not what was written.
    """

    folder: Path
    files: int
    bytes: int
    damaged: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every file is."""
        return not self.damaged

    def __str__(self) -> str:
        if self.is_whole:
            return f"{self.folder}: {self.files} files, {self.bytes:,} bytes, all as written"
        title = f"{self.folder}: damaged; delete these files and prepare again to have them anew"
        return "\n".join([title, *(f"  {line}" for line in self.damaged)])

    def to_dict(self) -> dict[str, Any]:
        """All values under their names, for JSON."""
        values = {**dataclasses.asdict(self), "folder": str(self.folder)}
        return values | {"is_whole": self.is_whole}
