"""One number for each leaf that says which numbers are in it, however it lies on devices.

A SHA-256 of an array's bytes needs them in order and in one place, which no host of many has. This
sum needs neither: each element is mixed with its place in the whole array to 64 bits, and those are
added modulo 2^64. So each process adds up the pieces that its own devices hold, every piece counted
on one device only, and the sums of the processes are added, in any order. It is the same on one
device and on a pod, and it costs what a SHA-256 costs on one core (2 GB/s).

It tells apart arrays that differ by accident or by training; it is no defence against somebody who
looks for two arrays with one sum, and the files' own SHA-256 is beside it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

_BLOCK = 1 << 15  # elements mixed at once: what fits into a core's own cache
_ALL = (1 << 64) - 1
# Odd numbers without a pattern (the golden ratio's, and those of two known mixers).
_OF_NUMBER, _OF_PLACE, _MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD

# A piece of an array: where it begins in the whole one, and its numbers.
Piece = tuple[tuple[int, ...], np.ndarray]


def sum_of_array(array: np.ndarray) -> int:
    """The sum of a whole array.

    Example:
      >>> f"{sum_of_array(np.arange(3.0)):016x}"
      '8384d9ac371cca47'
    """
    return sum_of_piece(array.shape, (0,) * array.ndim, array)


def sum_of_piece(shape: tuple[int, ...], start: tuple[int, ...], piece: np.ndarray) -> int:
    """What a piece adds to the sum of the whole.

    Args:
      shape: of the whole array.
      start: the index in it of the piece's first element.
      piece: numbers of 1, 2, 4 or 8 bytes.

    Example:
      >>> whole = np.arange(12.0).reshape(3, 4)
      >>> halves = [sum_of_piece((3, 4), (0, c), whole[:, c : c + 2]) for c in (0, 2)]
      >>> sum(halves) % 2**64 == sum_of_array(whole)
      True
    """
    if piece.size == 0:
        return 0
    words = np.ascontiguousarray(piece).reshape(-1).view(f"u{piece.dtype.itemsize}")
    starts, length = _runs(shape, start, piece.shape)
    words, total = words.reshape(-1, length), 0
    columns = min(length, _BLOCK)
    rows = max(1, _BLOCK // columns)
    ramp = np.arange(columns, dtype=np.uint64) * np.uint64(_OF_PLACE)
    for row in range(0, len(words), rows):
        first = starts[row : row + rows, None]
        for column in range(0, length, columns):
            block = words[row : row + rows, column : column + columns]
            place = (first + np.uint64(column)) * np.uint64(_OF_PLACE)
            total += _mixed(block, place, ramp[: block.shape[1]])
    return total & _ALL


def _runs(
    shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    """The places in the whole array at which a piece's unbroken runs begin, and their length."""
    axis = len(shape)  # the run takes in the axes after this one, and this one
    length = 1
    while axis > 0:
        axis -= 1
        length *= size[axis]
        if size[axis] != shape[axis]:
            break
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    starts = np.zeros(1, np.uint64) + np.uint64(
        sum(strides[a] * start[a] for a in range(len(shape)))
    )
    for a in range(axis):
        steps = np.arange(size[a], dtype=np.uint64) * np.uint64(strides[a])
        starts = (starts[:, None] + steps[None, :]).reshape(-1)
    return starts, length


def _mixed(words: np.ndarray, place: np.ndarray, ramp: np.ndarray) -> int:
    mixed = np.multiply(words, np.uint64(_OF_NUMBER), dtype=np.uint64)
    mixed += place
    mixed += ramp[None, :]
    shifted = mixed >> np.uint64(32)
    mixed ^= shifted
    mixed *= np.uint64(_MIX)
    np.right_shift(mixed, np.uint64(29), out=shifted)
    mixed ^= shifted
    return int(mixed.sum(dtype=np.uint64))


def own_pieces(named: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], list[Piece]]]:
    """What this process adds to the sum of each array: its shape and the pieces, on the host.

    Of pieces that several devices hold, the first one's process has it. On a CPU nothing is copied;
    elsewhere JAX keeps what was fetched, so it is fetched once for the sum and for the disk.

    Args:
      named: arrays; those of NumPy count in process 0.
    """
    mine = {name: _own(array) for name, array in named.items()}
    for pieces in mine.values():
        for _, data in pieces:
            if isinstance(data, jax.Array):
                data.copy_to_host_async()
    return {
        name: (tuple(named[name].shape), [(start, np.asarray(data)) for start, data in pieces])
        for name, pieces in mine.items()
    }


def _own(array: Any) -> list[tuple[tuple[int, ...], Any]]:
    if not isinstance(array, jax.Array):
        return [((0,) * array.ndim, array)] if jax.process_index() == 0 else []
    return [
        (tuple(part.start or 0 for part in shard.index), shard.data)
        for shard in array.addressable_shards
        if shard.replica_id == 0
    ]


def sums_of_pieces(
    named: Mapping[str, tuple[tuple[int, ...], list[Piece]]], threads: int | None = None
) -> dict[str, int]:
    """This process's part of the sum of each array.

    Args:
      named: from `own_pieces`.
      threads: at work at once; None takes one for each core, up to eight.
    """
    jobs = [(name, shape, *piece) for name, (shape, pieces) in named.items() for piece in pieces]
    threads = threads or min(8, os.cpu_count() or 1)
    found = dict.fromkeys(named, 0)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda job: sum_of_piece(job[1], job[2], job[3]), jobs)
        for (name, *_), part in zip(jobs, parts, strict=True):
            found[name] = (found[name] + part) & _ALL
    return found


def added(parts: Iterator[Mapping[str, int]] | list[Mapping[str, int]]) -> dict[str, int]:
    """The sums of the whole arrays, from those of all processes."""
    found: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = (found.get(name, 0) + value) & _ALL
    return found
