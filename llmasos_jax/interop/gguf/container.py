"""One GGUF file, version 2 or 3: its header checked before anything is believed.

    "GGUF" | version u32 | tensors u64 | keys u64 | metadata | tensor infos | padding | data

Everything is little-endian. A file comes from a stranger: every count and length is held against
the file's size and a limit before anything is allocated, and no tensor is read here.
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import refuse_pointer, shown
from llmasos_jax.interop.gguf.types import BLOCK_TYPES, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 2**25  # bytes; the largest vocabularies with their merges need half
MAX_KEYS = 2**12
MAX_TEXT = 2**23  # bytes of one text; Python may need four times as many
MAX_STRINGS = 2**20  # in all arrays together
MAX_TENSORS = 2**14  # a published model has at most a few thousand
MAX_NAME = 2**10  # bytes, of a key or a tensor; llama.cpp allows tensors 64
MAX_RANK = 4
MAX_ALIGNMENT = 2**16
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    code: np.dtype(name)
    for code, name in (
        *((0, "<u1"), (1, "<i1"), (2, "<u2"), (3, "<i2"), (4, "<u4"), (5, "<i4"), (6, "<f4")),
        *((_BOOL, "?"), (10, "<u8"), (11, "<i8"), (12, "<f8")),
    )
}
_U32, _U64, _TWO = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place in the file.

    Attributes:
      name: as the file has it.
      shape: row-major, as everywhere here; the file lists the sizes the other way round.
      type: how its numbers are stored.
      begin: its first byte in the file.
      nbytes: how many bytes it has there.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    begin: int
    nbytes: int


@dataclass(frozen=True)
class Container:
    """What a GGUF file holds; its tensors not read.

    Attributes:
      path: the file.
      version: of the GGUF format, 2 or 3.
      metadata: values by key: int, float, bool, str, a NumPy array of numbers, or a list of str.
      tensors: places by name, in the order of the file.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def read_container(path: Path) -> Container:
    """Reads the header of a GGUF file.

    Raises:
      FormatError: it is not a whole GGUF file of version 2 or 3. No other error comes out,
        whatever the bytes.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(MAX_HEADER)
    except OSError as error:
        raise FormatError(f"cannot read {path.name}: {error.strerror or error}") from error
    return parse_container(raw, size, path)


def parse_container(raw: bytes, size: int, path: Path) -> Container:
    """The same, of the file's first bytes (`MAX_HEADER`, or all if there are fewer) and its size.

    Raises:
      FormatError: as `read_container`.
    """
    refuse_pointer(raw, path.name)
    reader = _Reader(raw, size, path.name)
    version, num_tensors, num_keys = _read_start(reader)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.name("a key's name")
        if key in metadata:
            raise reader.error(f'the key "{shown(key)}" stands twice; each key may stand once')
        metadata[key] = reader.value(key)
    alignment = _alignment(reader, metadata)
    infos = [_read_info(reader) for _ in range(num_tensors)]
    data_begin = -(-reader.at // alignment) * alignment
    tensors = {i.name: _placed(reader, i, data_begin, alignment) for i in infos}
    if len(tensors) != len(infos):
        twice = Counter(i.name for i in infos).most_common(1)[0][0]
        raise reader.error(f'the tensor "{shown(twice)}" stands twice; each may stand once')
    _refuse_overlaps(reader, tensors)
    return Container(path, version, MappingProxyType(metadata), MappingProxyType(tensors))


class _Reader:
    """Takes values off the header, one after the other, and never beyond its end."""

    def __init__(self, raw: bytes, size: int, where: str) -> None:
        self.raw, self.size, self.where = raw, size, where
        self.at = 0
        self._strings_left = MAX_STRINGS

    def error(self, text: str) -> FormatError:
        return FormatError(f"{self.where}: {text}")

    def take(self, count: int, what: str) -> int:
        """Steps over `count` bytes and returns where they begin."""
        begin, end = self.at, self.at + count
        if end > len(self.raw):
            if end > self.size:
                raise self.error(
                    f"{what} of {shown(count)} bytes at byte {begin} goes past the end of the file "
                    f"({self.size} bytes); it is cut off or damaged"
                )
            raise self.error(
                f"{what} of {shown(count)} bytes at byte {begin} goes past byte {MAX_HEADER}, "
                "where a header ends at the latest; the file is damaged"
            )
        self.at = end
        return begin

    def u32(self, what: str) -> int:
        return _U32.unpack_from(self.raw, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.raw, self.take(8, what))[0]

    def name(self, what: str) -> str:
        length = self.u64(what)
        if not 0 < length <= MAX_NAME:
            raise self.error(
                f"{what} at byte {self.at - 8} claims {shown(length)} bytes, must have 1 to "
                f"{MAX_NAME}; the file is damaged"
            )
        return self._text(length, what)

    def _text(self, length: int, what: str) -> str:
        if length > MAX_TEXT and self.at + length <= self.size:
            raise self.error(f"{what} has {length} bytes, a text has at most {MAX_TEXT}")
        begin = self.take(length, what)
        try:
            return self.raw[begin : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} at byte {begin} is not UTF-8; the file is damaged") from error

    def value(self, key: str) -> Any:
        what = f'the value of "{shown(key)}"'
        kind = self.u32(what)
        if kind == _STRING:
            return self._text(self.u64(what), what)
        if kind == _ARRAY:
            return self._array(what)
        return self._numbers(kind, 1, what)[0].item()

    def _array(self, what: str) -> Any:
        kind, count = _TWO.unpack_from(self.raw, self.take(12, what))
        if kind == _STRING:
            return self._strings(count, what)
        if kind == _ARRAY:
            raise self.error(f"{what} is an array of arrays, which no model of today has")
        return self._numbers(kind, count, what)

    def _numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self.error(f"{what} has type {kind}; GGUF has the types 0 to 12")
        begin = self.take(count * dtype.itemsize, what)
        if kind == _BOOL:
            numbers = np.frombuffer(self.raw, np.uint8, count, begin)
            if count and numbers.max() > 1:
                raise self.error(f"{what} is a boolean with a byte other than 0 and 1")
            return numbers.astype(bool)
        return np.frombuffer(self.raw, dtype, count, begin).copy()  # else `raw` would stay

    def _strings(self, count: int, what: str) -> list[str]:
        if count > self._strings_left:
            raise self.error(
                f"{what} claims {shown(count)} strings; a file has at most {MAX_STRINGS} in all"
            )
        self._strings_left -= count
        raw, at, end = self.raw, self.at, len(self.raw)
        found: list[str] = []
        # A vocabulary has 10^5 of them: no call of `take` for each.
        try:
            for _ in range(count):
                length = _U64.unpack_from(raw, at)[0]
                stop = at + 8 + length
                if stop > end or length > MAX_TEXT:
                    break
                found.append(raw[at + 8 : stop].decode("utf-8"))
                at = stop
        except struct.error:
            pass
        except UnicodeDecodeError as error:
            raise self.error(f"{what}: string {len(found)} is not UTF-8") from error
        self.at = at
        if len(found) != count:
            raise self.error(
                f"{what} claims {count} strings; that with index {len(found)} goes past the end of "
                f"the {'file' if end == self.size else 'largest header'} or is longer than "
                f"{MAX_TEXT} bytes; the file is cut off or damaged"
            )
        return found


def _read_start(reader: _Reader) -> tuple[int, int, int]:
    if reader.raw[:4] != MAGIC:
        raise reader.error(
            f"begins with {bytes(reader.raw[:4])!r}, a GGUF file with {MAGIC!r}; this is no GGUF "
            "file (or a GGML file of before August 2023: convert the model again)"
        )
    reader.at = 4
    version = reader.u32("the version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS):
            raise reader.error(
                "is a big-endian GGUF file; only little-endian ones are read. Convert it with "
                "gguf-convert-endian, of the package gguf"
            )
        raise reader.error(
            f"is of GGUF version {version}, versions 2 and 3 are read; "
            + ("convert the model again" if version < 2 else "update llmasos_jax")
        )
    num_tensors, num_keys = reader.u64("the number of tensors"), reader.u64("the number of keys")
    for count, what, most in (
        (num_tensors, "tensors", MAX_TENSORS),
        (num_keys, "metadata keys", MAX_KEYS),
    ):
        if count > most:
            raise reader.error(
                f"claims {shown(count)} {what}, a file has at most {most}; it is damaged"
            )
    return version, num_tensors, num_keys


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    is_power = isinstance(value, int) and value > 0 and value & (value - 1) == 0
    if not is_power or isinstance(value, bool) or value > MAX_ALIGNMENT:
        raise reader.error(
            f"general.alignment = {shown(value)} must be a power of two up to {MAX_ALIGNMENT}"
        )
    return value


def _read_info(reader: _Reader) -> TensorInfo:
    """One tensor's entry; `begin` is still counted from the data's first byte."""
    name = reader.name("a tensor's name")
    what = f'the entry of the tensor "{shown(name)}"'
    rank = reader.u32(what)
    if rank > MAX_RANK:
        raise reader.error(f"{what} claims {rank} dimensions, a tensor has at most {MAX_RANK}")
    sizes = struct.unpack_from(f"<{rank}Q", reader.raw, reader.take(8 * rank, what))
    code, offset = _TWO.unpack_from(reader.raw, reader.take(12, what))
    shape = tuple(reversed(sizes))
    kind = BLOCK_TYPES.get(code)
    if kind is None:
        raise reader.error(f"{what} names type {code}, which is not known; update llmasos_jax")
    count = math.prod(shape)
    if not 0 < count <= kind.numbers * reader.size:
        raise reader.error(f"{what} claims the shape {shown(list(shape))}, more than the file has")
    row = shape[-1] if shape else 1
    if row % kind.numbers:
        raise reader.error(
            f"{what} has rows of {row} numbers, {kind.name} needs a multiple of {kind.numbers}"
        )
    return TensorInfo(name, shape, kind, offset, count // kind.numbers * kind.nbytes)


def _placed(reader: _Reader, info: TensorInfo, data_begin: int, alignment: int) -> TensorInfo:
    begin = data_begin + info.begin
    if info.begin % alignment:
        raise reader.error(
            f'the tensor "{shown(info.name)}" begins at byte {shown(info.begin)} of the data, '
            f"which is not a multiple of the alignment {alignment}"
        )
    if begin + info.nbytes > reader.size:
        raise reader.error(
            f'the tensor "{shown(info.name)}" takes the bytes {shown(begin)} to '
            f"{shown(begin + info.nbytes)}, the file has {reader.size}; it is cut off or damaged"
        )
    return TensorInfo(info.name, info.shape, info.type, begin, info.nbytes)


def _refuse_overlaps(reader: _Reader, tensors: Mapping[str, TensorInfo]) -> None:
    end, before = 0, ""
    for info in sorted(tensors.values(), key=lambda i: i.begin):
        if info.begin < end:
            raise reader.error(
                f'the tensors "{shown(before)}" and "{shown(info.name)}" overlap at byte '
                f"{info.begin}; the file is damaged"
            )
        end, before = info.begin + info.nbytes, info.name
