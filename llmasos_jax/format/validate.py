"""Checks a whole model, every byte of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.errors import FormatError
from llmasos_jax.format import folder as folders
from llmasos_jax.format.read import ModelFiles, read_model

_PIECE = 2**22  # bytes


@dataclass(frozen=True)
class Validation:
    """What `validate` found right.

    Attributes:
      path: the model's folder.
      name: the model's name.
      num_tensors: tensors, all of the model's.
      num_parameters: numbers in them.
      num_bytes: bytes of the files with the weights.
      hashes_checked: whether `model.json` lists SHA-256 sums, all of which were right.
    """

    path: Path
    name: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    hashes_checked: bool

    def __str__(self) -> str:
        hashes = "all sha256 right" if self.hashes_checked else "no sha256 listed"
        return (
            f'"{self.path}" is a valid LLMasOS model: {self.name}, {self.num_parameters:,} '
            f"parameters in {self.num_tensors} tensors, {hashes}"
        )


def validate(source: str | os.PathLike[str], *, allow_code: bool = False) -> Validation:
    """Reads every byte of a model and checks it against the format.

    Args:
      source: a `model.json`, or the folder that has it.
      allow_code: whether parts may be called "package.module:name", which imports that module. Off
        by default: opening a model runs no code.

    Raises:
      FormatError: the first thing that is wrong.
    """
    files = read_model(source, allow_code=allow_code)
    weights = files.manifest.weights
    for entry in weights.files if weights is not None else ():
        found = sha256_of(folders.file_in(files.path, entry.file))
        if found != entry.sha256:
            raise FormatError(
                f"{entry.file} has sha256 {found}, model.json says {entry.sha256}; the file was "
                "changed or damaged, fetch it again"
            )
    _check_tokenizer_files(files)
    return Validation(
        path=files.path,
        name=files.manifest.name,
        num_tensors=len(files.tensors),
        num_parameters=files.num_parameters,
        num_bytes=sum(tensor.nbytes for tensor in files.tensors.values()),
        hashes_checked=weights is not None,
    )


def _check_tokenizer_files(files: ModelFiles) -> None:
    name = (files.manifest.tokenizer or {}).get("file")
    if isinstance(name, str):
        folders.file_in(files.path, name)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
      FormatError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise FormatError(f'cannot read "{path}": {error.strerror or error}') from error
    return digest.hexdigest()
