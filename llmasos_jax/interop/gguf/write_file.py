"""One GGUF file of version 3, written header first, then tensor by tensor."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmasos_jax.errors import FormatError
from llmasos_jax.interop.gguf.container import DEFAULT_ALIGNMENT, MAGIC, MAX_HEADER
from llmasos_jax.interop.gguf.quantize import TYPES

_VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class Outgoing:
    """A tensor on its way into a file.

    Attributes:
      name: there.
      shape: row-major.
      type: the name of the type that it gets.
      parts: gives its bytes, one array of uint8 after the other.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    parts: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        kind = TYPES[self.type]
        return math.prod(self.shape) // kind.numbers * kind.nbytes


def write_file(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Outgoing],
    on_tensor: Callable[[str, int], None] | None = None,
) -> None:
    """Writes a file, and has one tensor in memory at a time.

    Args:
      path: a new file.
      metadata: values by key: bool, int (0 to 2^32 - 1), float (float32), str, a list of str, or a
        list or array of numbers.
      tensors: in the order of the file.
      on_tensor: called with the name and size in bytes of each tensor written.

    Raises:
      FormatError: the disk does not take it, or the header is longer than any reader takes.
    """
    header = b"".join(_header(metadata, tensors))
    if len(header) > MAX_HEADER:
        raise FormatError(
            f"the header of {path.name} has {len(header)} bytes, readers take {MAX_HEADER}; the "
            "vocabulary is too large for GGUF"
        )
    try:
        with path.open("xb") as file:
            file.write(header + bytes(_gap(len(header))))
            for tensor in tensors:
                _write_tensor(file, tensor)
                if on_tensor is not None:
                    on_tensor(tensor.name, tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FormatError(f"cannot write {path.name}: {error.strerror or error}") from error


def _write_tensor(file: BinaryIO, tensor: Outgoing) -> None:
    written = 0
    for part in tensor.parts():
        written += file.write(part.data)
    if written != tensor.nbytes:
        raise FormatError(
            f"{tensor.name} came to {written} bytes, {tensor.type}{list(tensor.shape)} has "
            f"{tensor.nbytes}; its source has changed since it was opened"
        )
    file.write(bytes(_gap(written)))


def _gap(size: int) -> int:
    return -size % DEFAULT_ALIGNMENT


def _header(metadata: Mapping[str, Any], tensors: Sequence[Outgoing]) -> Iterator[bytes]:
    yield MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))
    for key, value in metadata.items():
        yield _text(key)
        yield _value(key, value)
    offset = 0
    for tensor in tensors:
        yield _text(tensor.name)
        rank = len(tensor.shape)
        code = TYPES[tensor.type].code
        yield struct.pack(f"<I{rank}QIQ", rank, *reversed(tensor.shape), code, offset)
        offset += tensor.nbytes + _gap(tensor.nbytes)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        if not 0 <= value < 2**32:
            raise FormatError(f"{key} = {value} is not from 0 to 2^32 - 1, as GGUF's numbers are")
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    return struct.pack("<I", _ARRAY) + _array(key, value)


def _array(key: str, values: Any) -> bytes:
    if isinstance(values, (list, tuple)) and all(isinstance(v, str) for v in values):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_text, values))
    array = np.asarray(values)
    kinds = {"b": (_BOOL, "?"), "i": (_I32, "<i4"), "u": (_I32, "<i4"), "f": (_F32, "<f4")}
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise FormatError(f"{key} is neither numbers nor texts, which is all that GGUF lists hold")
    code, dtype = kinds[array.dtype.kind]
    return struct.pack("<IQ", code, len(array)) + array.astype(dtype).tobytes()
