"""The hash of all ids: the name of a corpus, however it is cut into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.data.prepared.arrays import mapped
from llmasos_jax.data.prepared.manifest import Shard, Side

_IDS_AT_A_TIME = 1 << 22


def corpus_digest(folder: Path, sides: Sequence[Side]) -> str:
    """SHA-256 of each side's ids, then of its offsets.

    Where sentences are kept it is of each document the ids and where its sentences end in the side.

    Args:
      folder: with the files of the sides.
      sides: train, heldout.

    Raises:
      OSError, ValueError: a file is not there, or not whole.
    """
    digest = hashlib.sha256()
    for side in sides:
        start = 0
        for shard in side.shards:
            if shard.sentences is None:
                _hash(mapped(folder / shard.ids.file), digest)
            else:
                _hash_sentences(shard, mapped(folder / shard.sentences.file), start, folder, digest)
            start += shard.tokens
        _hash(mapped(folder / side.offsets.file), digest)
    return digest.hexdigest()


def _hash(array: np.ndarray, digest: Any) -> None:
    for start in range(0, len(array), _IDS_AT_A_TIME):
        digest.update(array[start : start + _IDS_AT_A_TIME].tobytes())


def _hash_sentences(shard: Shard, ends: np.ndarray, start: int, folder: Path, digest: Any) -> None:
    """Documents one by one: the ids of each, then where its sentences end in the side."""
    ids = mapped(folder / shard.ids.file)
    stops = np.cumsum(mapped(folder / shard.lengths.file), dtype=np.int64)
    # A document's sentences end behind its first token and at the latest with its last one.
    counts = np.searchsorted(ends, stops, side="right")
    first = first_end = 0
    for stop, stop_end in zip(stops.tolist(), counts.tolist(), strict=True):
        digest.update(ids[first:stop].tobytes())
        digest.update((start + ends[first_end:stop_end]).astype("<i8").tobytes())
        first, first_end = stop, stop_end
