"""One safetensors file: its header checked before anything is believed, its tensors read lazily.

    8 bytes: N, little-endian | N bytes: JSON header | the tensors' bytes, one after the other

Written here rather than through the safetensors library because that one wants every tensor in
memory to write, and because a reader of files from strangers must say what is wrong and how. The
tests read and write with the library too.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import POINTER, parse_json, refuse_pointer, shown

DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
CODES = {str(dtype): code for code, dtype in DTYPES.items()}
_NAMES = {code: name for name, code in CODES.items()}
# Types that safetensors has and weights of ours have not: by code, name and bytes of one number.
_OTHERS = {
    **{
        f"{kind}{8 * size}": (f"{name}{8 * size}", size)
        for kind, name in (("I", "int"), ("U", "uint"))
        for size in (1, 2, 4, 8)
    },
    "F64": ("float64", 8),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
}
_SIZES = {name: size for name, size in _OTHERS.values()} | {
    str(dtype): dtype.itemsize for dtype in DTYPES.values()
}
MAX_HEADER = 2**25  # bytes; a model of 4096 layers needs half
MAX_RANK = 8
# Tensors start on this boundary, so that a mapped file can be used without a copy.
_ALIGN = 64


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when asked for.

    Attributes:
      shape: sizes of its axes.
      dtype: "float32", "bfloat16" or "float16"; another one only from `open_tensors(others=True)`.
      read: gives the array; a view of the mapped file where there is one, so copy it to change it.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * _SIZES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(str(size) for size in self.shape)}]"


def stored(array: Any) -> StoredTensor:
    """Wraps an array that is in memory already.

    Raises:
      FormatError: its dtype is not one that the format stores.
    """
    if str(array.dtype) not in CODES:
        raise FormatError(f"a {array.dtype} cannot be stored; cast it to one of {', '.join(CODES)}")
    return StoredTensor(tuple(array.shape), str(array.dtype), lambda: np.asarray(array))


def open_tensors(path: Path, *, others: bool = False) -> dict[str, StoredTensor]:
    """Maps a safetensors file and checks its header; reads no tensor.

    Args:
      path: a regular file.
      others: whether it may hold tensors of types that weights of ours have not, such as integers;
        to read one is an error.

    Returns:
      Its tensors by name, in the order of the file.

    Raises:
      FormatError: it is not a safetensors file of float tensors. No other error comes out, whatever
        the bytes.
    """
    where = path.name
    try:
        size = path.stat().st_size
        if size < 8:
            raise FormatError(f"{where} has {size} bytes; a safetensors file has at least 8")
        with path.open("rb") as file:
            length = int.from_bytes(start := file.read(8), "little")
            if length > min(MAX_HEADER, size - 8):
                refuse_pointer(start + file.read(len(POINTER)), where)
                raise FormatError(
                    f"{where} claims a header of {length} bytes; the file has {size} and a header "
                    f"at most {MAX_HEADER}. It is cut off, or not a safetensors file"
                )
            raw = file.read(length)
        entries = parse_header(raw, size - 8 - length, where, others=others)
        if size == 8 + length:
            return {n: StoredTensor(e.shape, e.dtype, _empty(e)) for n, e in entries.items()}
        # Mapped anew for each tensor: what was read is given back with the array. The file stays
        # open, so that all tensors are of this one, whatever the path comes to mean.
        source = _OpenFile(path)
    except OSError as error:
        raise FormatError(f"cannot read {where}: {error.strerror or error}") from error
    return {
        n: StoredTensor(e.shape, e.dtype, _slice(source, 8 + length, e)) for n, e in entries.items()
    }


@dataclass(frozen=True)
class Entry:
    """A tensor's place: shape, dtype by name, first and past-the-last byte after the header."""

    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int


class _OpenFile:
    """A file that is open until nobody needs it any more."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # A default, since the module may be gone when the interpreter ends.
        if hasattr(self, "handle"):
            close(self.handle)

    def map(self, begin: int, end: int) -> np.ndarray:
        """Some bytes of it, as they stand in the system's own memory."""
        skipped = begin % mmap.ALLOCATIONGRANULARITY
        view = mmap.mmap(
            self.handle, end - begin + skipped, offset=begin - skipped, access=mmap.ACCESS_READ
        )
        return np.frombuffer(view, np.uint8, offset=skipped)


def _slice(source: _OpenFile, start: int, entry: Entry) -> Callable[[], np.ndarray]:
    if entry.dtype not in CODES:
        return _unreadable(entry)
    dtype = DTYPES[CODES[entry.dtype]]
    if entry.begin == entry.end:
        return _empty(entry)

    def read() -> np.ndarray:
        try:
            raw = source.map(start + entry.begin, start + entry.end)
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise FormatError(f"cannot read the weights: {error}") from error
        return raw.view(dtype).reshape(entry.shape)

    return read


def _unreadable(entry: Entry) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        raise FormatError(f"a tensor of {entry.dtype} is not read; known: {', '.join(CODES)}")

    return read


def _empty(entry: Entry) -> Callable[[], np.ndarray]:
    if entry.dtype not in CODES:
        return _unreadable(entry)
    return lambda: np.zeros(entry.shape, DTYPES[CODES[entry.dtype]])


def parse_header(
    raw: bytes, data_size: int, where: str, *, others: bool = False
) -> dict[str, Entry]:
    """Checks a safetensors header against the number of bytes that follow it.

    Raises:
      FormatError: an entry is malformed, or the tensors do not fill the data exactly, without gaps
        and without overlaps.
    """
    if raw[:1] != b"{":
        raise FormatError(f"{where}: the header is not a JSON object; not a safetensors file")
    header = parse_json(raw, where)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise FormatError(f"{where}: __metadata__ must map strings to strings")
    entries = {name: _entry(name, value, where, others) for name, value in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            problem = "overlaps the one before" if entry.begin < end else "leaves a gap"
            raise FormatError(
                f"{where}: {shown(name)} begins at byte {entry.begin}, which {problem} "
                f"(expected {end})"
            )
        end = entry.end
    if end != data_size:
        raise FormatError(
            f"{where}: the tensors end at byte {end} of the data, the file has {data_size}; "
            "it is cut off or damaged"
        )
    return entries


def _entry(name: str, value: Any, where: str, others: bool) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(
            f"{where}: {shown(name)} must have exactly the keys dtype, shape and data_offsets"
        )
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES and not (others and code in _OTHERS):
        raise FormatError(
            f"{where}: {shown(name)} has dtype {shown(code)}; the format stores {', '.join(DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise FormatError(f"{where}: {shown(name)} has shape {shown(shape)}, which no tensor has")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: {shown(name)} has data_offsets {shown(offsets)}")
    dtype = _NAMES[code] if code in _NAMES else _OTHERS[code][0]
    expected = math.prod(shape) * _SIZES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise FormatError(
            f"{where}: {shown(name)} takes {offsets[1] - offsets[0]} bytes, {code} of shape "
            f"{shown(shape)} takes {expected}"
        )
    return Entry(tuple(shape), dtype, offsets[0], offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**62 for v in values
    )


def build_header(tensors: Mapping[str, StoredTensor], kind: str = "llmasos-1") -> bytes:
    """The first bytes of a file with these tensors: length and header, padded with spaces.

    Args:
      tensors: in the order of the file.
      kind: what the file says of itself; other programs look for a word of their own there.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": kind}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        entries[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-(8 + len(raw)) % _ALIGN)
    return len(raw).to_bytes(8, "little") + raw
