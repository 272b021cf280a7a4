"""Arrays on disk: written without knowing their length, read without holding them."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

# Shards whose files stay open; a folder has no more of one side (`plan.py`).
MAX_OPEN = 256


class GrowingArray:
    """A .npy file of one axis whose length is known only at the end.

    Args:
      path: the file.
      dtype: of its elements, with its byte order.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._file: IO[bytes] = open(path, "wb")
        self._dtype, self._count = dtype, 0
        self._write_header()

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self) -> None:
        # A header is as long for any count, so it can be written again at the end.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, array: np.ndarray) -> None:
        """Writes more elements."""
        self._file.write(array.astype(self._dtype).tobytes())
        self._count += len(array)


def mapped(path: Path) -> np.ndarray:
    """An array of a file, read where it is looked at.

    Raises:
      ValueError, OSError: it is not there, or not whole.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        return np.load(path, allow_pickle=False)


class _File:
    """The elements of one .npy file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{path.name} is no .npy file of version 1.0")
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()
        (self.count,) = shape
        stored = (path.stat().st_size - self._start) // self.dtype.itemsize
        if stored < self.count:
            raise ValueError(f"{path.name} has {stored} elements, expected {self.count}")

    def read(self, start: int, out: np.ndarray) -> None:
        if self._handle is None:
            self._handle = os.open(self._path, os.O_RDONLY)
        size = self.dtype.itemsize
        left, at = out.view(np.uint8).data, self._start + start * size
        while left:
            count = os.preadv(self._handle, [left], at)
            if count == 0:
                raise OSError(f"{self._path} has become shorter; prepare the data again")
            left, at = left[count:], at + count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


class ShardedArray:
    """Files of one axis as one array; what is asked for is read, and nothing else is kept.

    Reads copy, so that the memory of a process that walks through a large corpus does not grow
    with the pages that it has seen, as it does where files are mapped.

    Args:
      paths: .npy files of the same dtype, in order; at least one.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_File(path) for path in paths]
        counts = [file.count for file in self._files]
        self._starts = np.cumsum([0, *counts]).tolist()
        self.dtype = self._files[0].dtype
        self.shape = (self._starts[-1],)
        self.size = self._starts[-1]

    def __len__(self) -> int:
        return self.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __getitem__(self, index: Any) -> Any:
        """Elements: of an integer one, of a slice or integers an array of its own."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self.size)
            if step != 1:
                return self[np.arange(start, stop, step)]
            return self._read(start, max(start, stop))
        places = np.asarray(index)
        if places.dtype == bool:
            places = np.flatnonzero(places)
        places = np.where(places < 0, places + self.size, places)
        if places.size and not 0 <= places.min() <= places.max() < self.size:
            raise IndexError(f"index {index} of an array of {self.size}")
        found = np.array([self._read(p, p + 1)[0] for p in places.ravel().tolist()], self.dtype)
        return found[0] if places.ndim == 0 else found.reshape(places.shape)

    def _read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty(stop - start, self.dtype)
        at, number = start, bisect.bisect_right(self._starts, start) - 1
        while at < stop:
            end = min(stop, self._starts[number + 1])
            if end > at:
                first = self._starts[number]
                self._files[number].read(at - first, out[at - start : end - start])
            at, number = end, number + 1
        return out
