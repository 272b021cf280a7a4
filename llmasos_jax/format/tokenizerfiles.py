"""A model's tokenizer before it is opened: it can be copied without being run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmasos_jax.data.tokenizers.load import load_tokenizer
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.format.folder import MANIFEST


class TokenizerFiles(Protocol):
    """A tokenizer that is kept somewhere: in a folder, or inside another file."""

    def load(self, *, allow_code: bool = False) -> Tokenizer:
        """Opens it; see `data.tokenizer.load_tokenizer`."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes its files into `folder`; returns the `tokenizer` entry of `model.json`."""
        ...


@dataclass(frozen=True)
class FolderTokenizer:
    """A tokenizer whose files stand in a folder.

    Attributes:
      entry: of `model.json`.
      folder: where the files are.
      files: their names.
    """

    entry: Mapping[str, Any]
    folder: Path
    files: tuple[str, ...]

    def load(self, *, allow_code: bool = False) -> Tokenizer:
        """Opens the tokenizer."""
        return load_tokenizer(self.entry, self.folder, allow_code=allow_code)

    def save(self, folder: Path) -> dict[str, Any]:
        """Copies the files into `folder` and returns the entry."""
        for name in self.files:
            shutil.copyfile(self.folder / name, folder / name)
        return dict(self.entry)


def folder_tokenizer(
    entry: Mapping[str, Any] | None,
    folder: Path,
    *,
    is_shared: bool = False,
    leave_out: tuple[str, ...] = (),
) -> FolderTokenizer | None:
    """The tokenizer of a model on disk; None if it has none.

    Args:
      entry: of `model.json`.
      folder: where its files are.
      is_shared: whether the folder holds other things too: then the files are those that the entry
        names, else all that are there.
      leave_out: files that are no part of the tokenizer.
    """
    if entry is None:
        return None
    if is_shared:
        named = {v for v in entry.values() if isinstance(v, str)}
        names = [n for n in sorted(named - {MANIFEST}) if (folder / n).is_file()]
    else:
        names = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    return FolderTokenizer(entry, folder, tuple(n for n in names if n not in leave_out))
