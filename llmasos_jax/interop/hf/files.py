"""Reads the small files of a Hugging Face folder, bounded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import parse_json, refuse_pointer, shown

MAX_CONFIG_BYTES = 16 * 2**20
MAX_TOKENIZER_BYTES = 256 * 2**20


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file of at most `most` bytes.

    Raises:
      FormatError: it is larger, cannot be read, or is a git-lfs pointer.
    """
    try:
        size = os.path.getsize(path)
        if size > most:
            raise FormatError(f"{path} has {size} bytes; expected at most {most}")
        raw = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    refuse_pointer(raw, str(path))
    return raw


def read_object(path: Path, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file; an empty one if there is no file.

    Raises:
      FormatError: the file is too large, is not JSON or no object.
    """
    if not path.is_file():
        return {}
    found = parse_json(read_bounded(path, most), str(path))
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds {shown(found)}; expected an object")
    return found
