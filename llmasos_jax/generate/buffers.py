"""Copies of tensors that a device on this CPU takes over without copying them once more."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

# XLA's CPU client uses a NumPy array in place if its first byte stands on this boundary.
_ALIGN = 64
# A turned copy writes whole cache lines of the target if it takes so many rows at a time.
_ROWS = 8
# After so many bytes the pages of a mapped source are given back.
_PIECE = 2**24


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that is not yet filled and that a device on this CPU can use in place."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    raw = np.empty(size + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size].view(kind).reshape(shape)


def aligned_copy(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in C order and of another type, in memory of its own.

    Beside the copy it needs a few megabytes: what was read of a mapped file is given back while it
    goes on. An array that is the transpose of a contiguous one is turned by blocks, which is four
    times as fast as NumPy's own way.

    Args:
      array: of any shape and strides.
      dtype: of the result.

    Example:
      >>> aligned_copy(np.arange(6.0).reshape(2, 3).T, np.float32)[2]
      array([2., 5.], dtype=float32)
    """
    out = aligned(array.shape, dtype)
    mapped = _mapped(array)
    held = 0
    # Always row by row of the source, so that a file is read once and in its order.
    for target, source, is_turned in _pairs(out, array):
        step = _ROWS if is_turned else max(1, _PIECE // max(1, source[:1].nbytes))
        for start in range(0, len(source), step):
            piece = source[start : start + step]
            if is_turned:
                target[:, start : start + step] = piece.T
            else:
                target[start : start + step] = piece
            held += piece.nbytes
            if mapped is not None and held >= _PIECE:
                mapped.madvise(mmap.MADV_DONTNEED)
                held = 0
    return out


def _pairs(out: np.ndarray, array: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """What to fill, what with, and whether one is the transpose of the other."""
    if array.size == 0 or array.ndim == 0:
        out[...] = array
        return []
    if array.flags.c_contiguous:
        return [(out, array, False)]
    for num_lead in range(array.ndim - 1):
        for split in range(num_lead + 1, array.ndim):
            lead, first = tuple(range(num_lead)), tuple(range(num_lead, split))
            back = array.transpose(*lead, *range(split, array.ndim), *first)
            if back.flags.c_contiguous:
                num_matrices = math.prod(array.shape[:num_lead])
                rows = math.prod(array.shape[num_lead:split])
                targets = out.reshape(num_matrices, rows, -1)
                sources = back.reshape(num_matrices, -1, rows)
                return [(t, s, True) for t, s in zip(targets, sources, strict=True)]
    return [(out, array, False)]


def _mapped(array: np.ndarray) -> mmap.mmap | None:
    """The mapping of a file that the array looks into, or None."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None
