"""Which documents stand in which shard: a function of the documents alone."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.data.files import renamed
from llmasos_jax.data.prepared.arrays import MAX_OPEN
from llmasos_jax.data.prepared.manifest import PLAN, dropped_from
from llmasos_jax.data.prepared.work import EncodeTask, ScanTask
from llmasos_jax.data.scan import Dropped
from llmasos_jax.data.split import Sides

# Bytes of text in a shard at most: some ten seconds of work, which is what a kill may cost.
SHARD_BYTES = 64 << 20
# Text that is shared among processes is cut finer, so that none of them waits long for the last.
_SHARED_SHARDS = 32
_LEAST_SHARD_BYTES = 1 << 20
_SCAN_DOCUMENTS = (16, 8192)  # looked at in one task, at least and at most


@dataclass(frozen=True)
class Plan:
    """Both sides, cut into shards.

    Attributes:
      indices: of each side the documents, int64, rising.
      borders: of each side where shards begin and the last one ends, in `indices`.
      sizes: of each side bytes of text of each shard.
      dropped: documents on neither side, by reason.
    """

    indices: dict[str, np.ndarray]
    borders: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    dropped: dict[str, Dropped]

    def tasks(self, side: str) -> list[EncodeTask]:
        """The shards of a side, in order."""
        indices, borders = self.indices[side], self.borders[side].tolist()
        return [
            EncodeTask(f"{side}-{number:05d}", indices[first:last], int(self.sizes[side][number]))
            for number, (first, last) in enumerate(zip(borders, borders[1:], strict=False))
        ]

    def write(self, folder: Path) -> None:
        """Keeps the plan in a folder."""
        arrays: dict[str, Any] = {
            f"{side}_{name}": getattr(self, name)[side]
            for side in self.indices
            for name in ("indices", "borders", "sizes")
        }
        text = json.dumps({n: dataclasses.asdict(d) for n, d in self.dropped.items()})
        dropped = np.frombuffer(text.encode(), np.uint8)
        with renamed(folder / PLAN) as path, open(path, "wb") as file:
            np.savez(file, dropped=dropped, **arrays)


def read_plan(folder: Path) -> Plan:
    """Reads what `Plan.write` wrote."""
    # Opened here, as NumPy leaves what it cannot read open.
    with open(folder / PLAN, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        dropped = dropped_from(json.loads(arrays["dropped"].tobytes().decode()))
        of = lambda name: {side: arrays[f"{side}_{name}"] for side in ("train", "heldout")}
        return Plan(of("indices"), of("borders"), of("sizes"), dropped)


def shared_shard_bytes(total: int) -> int:
    """Bytes of text in a shard of so much text, whatever the number of processes.

    Example:
      >>> [shared_shard_bytes(total) >> 10 for total in (1 << 20, 1 << 30, 1 << 40)]
      [1024, 32768, 65536]
    """
    return max(_LEAST_SHARD_BYTES, min(SHARD_BYTES, total // _SHARED_SHARDS))


def cut(sides: Sides, sizes: np.ndarray, shard_bytes: int | None = SHARD_BYTES) -> Plan:
    """Cuts both sides into shards of about `shard_bytes` of text; each has one at least.

    Shards are larger where there would be more than a process can hold open.

    Args:
      sides: what is kept.
      sizes: int64, bytes of each document of the source.
      shard_bytes: of one shard; None takes `shared_shard_bytes`.
    """
    indices = {"train": sides.train, "heldout": sides.heldout}
    borders, totals = {}, {}
    for side, documents in indices.items():
        ends = np.cumsum(sizes[documents])
        total = int(ends[-1]) if ends.size else 0
        size = shared_shard_bytes(total) if shard_bytes is None else shard_bytes
        size = max(size, -(-total // (MAX_OPEN - 1)))
        # A document belongs to the shard that its last byte falls into.
        shard = np.maximum(ends - 1, 0) // size
        first = np.flatnonzero(np.diff(shard)) + 1
        borders[side] = np.concatenate([[0], first, [len(documents)]]).astype(np.int64)
        sums = np.concatenate([[0], ends])
        totals[side] = np.diff(sums[borders[side]])
    return Plan(indices, borders, totals, dict(sides.dropped))


def scan_tasks(count: int) -> list[ScanTask]:
    """The first look at `count` documents, cut."""
    least, most = _SCAN_DOCUMENTS
    step = max(least, min(most, count // 16))
    return [
        ScanTask(number, first, min(first + step, count))
        for number, first in enumerate(range(0, count, step))
    ]
