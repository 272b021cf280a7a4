"""Batches from rows: number n depends on the rows, the seed and n, on nothing else."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast, overload

import grain
import jax
import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.mixture import MixedRows
from llmasos_jax.data.objectives import Prepare

_PREFETCHED_BATCHES = 4


class TrainBatches(Iterator[Batch]):
    """The batches of a run, without end: `train[n]`, or in turn, made ahead in a thread.

    Attributes:
      position: the step whose batch comes next.
      waited_s: seconds that the caller has spent waiting in `next`.
    """

    def __init__(self, batches: grain.MapDataset, start: int = 0) -> None:
        self._batches = batches
        self._iterator: Any = None
        self.waited_s = 0.0
        self.position = start

    def __getitem__(self, step: int) -> Batch:
        return cast(Batch, self._batches[step])

    def __next__(self) -> Batch:
        start_s = time.perf_counter()
        if self._iterator is None:
            ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED_BATCHES)
            self._iterator = iter(self._batches[self.position :].to_iter_dataset(ahead))
        batch = next(self._iterator)
        self.position += 1
        self.waited_s += time.perf_counter() - start_s
        return batch

    def state(self) -> dict[str, Any]:
        """What JSON keeps: the step whose batch comes next."""
        return {"step": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on with the batch of the state's step."""
        self.seek(int(state["step"]))

    def seek(self, step: int) -> None:
        """Goes on with the batch of `step`."""
        self.close()
        self.position = step

    def close(self) -> None:
        """Stops the thread; the next `next` starts another."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


class HeldoutBatches(Sequence[Batch]):
    """The held-out rows in batches of one shape; padding fills the last one.

    Of a mixture each batch is of one part, and the parts take turns.

    Args:
      rows: makes a batch.
      count: how many there are.
      parts: of each batch the name of its part; none where there is no mixture.
    """

    def __init__(self, rows: Callable[[int], Batch], count: int, parts: Sequence[str] = ()) -> None:
        self._rows, self._count, self._parts = rows, count, parts

    def part(self, index: int) -> str | None:
        """The name of the part of a mixture that a batch is of."""
        return self._parts[index] if self._parts else None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self._rows(i) for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(f"held-out batch {index} of {self._count}")
        return self._rows(index)


def train_batches(
    rows: Mapping[str, Sequence[Any]],
    shares: Sequence[int] | None,
    cfg: Config,
    own: Sequence[int],
    prepare: Prepare,
) -> TrainBatches:
    """Batches of the rows of all epochs. Of a mixture each part has its own epochs.

    Args:
      rows: of each part the rows of one epoch.
      shares: rows of each part in a stretch of a mixture; None where there is none.
      cfg: `data.seed` and `train.batch_size` are read.
      own: which rows of a batch this process makes.
      prepare: from a row to what a batch has of it.
    """
    seed = cfg.data.seed
    parts = [
        grain.MapDataset.source(cast(Any, part))
        # grain's epoch e uses seed + e, so runs with seeds 0 and 1 would share all epochs but one;
        # a hash of the seed sets them apart.
        .shuffle(seed=seed_for(f"order {name}".rstrip(), seed))
        .repeat()
        for name, part in rows.items()
    ]
    mixed = parts[0] if shares is None else grain.MapDataset.source(MixedRows(parts, shares))
    every = mixed.random_map(prepare, seed=seed_for("objective", seed))
    batches = _OwnBatches(every, cfg.train.batch_size, own)
    return TrainBatches(grain.MapDataset.source(cast(Any, batches)))


def heldout_batches(
    rows: Mapping[str, Sequence[Any]], cfg: Config, own: Sequence[int], prepare: Prepare
) -> HeldoutBatches:
    """Batches of each part's held-out rows; the parts take turns while they have any.

    Args:
      rows: of each part the held-out rows.
      cfg: `data.seed`, `data.mixture` and `train.batch_size` are read.
      own: which rows of a batch this process makes.
      prepare: from a row to what a batch has of it.
    """
    size, seed = cfg.train.batch_size, cfg.data.seed
    counts = {name: -(-len(part) // size) for name, part in rows.items()}
    turns = [
        (name, turn)
        for turn in range(max(counts.values()))
        for name, count in counts.items()
        if turn < count
    ]

    def batch(index: int) -> Batch:
        name, turn = turns[index]
        return fixed_batch(rows[name], [turn * size + row for row in own], seed, prepare)

    names = [name for name, _ in turns] if cfg.data.mixture else []
    return HeldoutBatches(batch, len(turns), names)


class _OwnBatches:
    """A process's rows of each batch: number n has rows n * batch_size + r, r of `own`."""

    def __init__(self, rows: grain.MapDataset, batch_size: int, own: Sequence[int]) -> None:
        self._rows, self._batch_size, self._own = rows, batch_size, own

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __getitem__(self, index: int) -> Batch:
        start = index * self._batch_size
        rows: list[Any] = [self._rows[start + row] for row in self._own]  # none is left out
        return stack(rows)


def fixed_batch(rows: Sequence[Any], indices: Sequence[int], seed: int, prepare: Prepare) -> Batch:
    """Rows by their numbers, prepared the same whenever they are asked for."""

    def row(index: int) -> Batch:
        return prepare(rows[index], np.random.default_rng([seed_for("heldout", seed), index]))

    made = [row(i) for i in indices if i < len(rows)]
    # After the last row comes padding: all arrays 0, so of no segment and of no weight.
    padding = jax.tree.map(np.zeros_like, made[0] if made else row(0))
    return stack(made + [padding] * (len(indices) - len(made)))


def stack(rows: Sequence[Batch]) -> Batch:
    """Puts prepared rows together: [T] each becomes [B, T].

    Example:
      >>> from llmasos_jax.data.objectives import causal
      >>> from llmasos_jax.data.packing import empty_row
      >>> row = causal(empty_row(4))
      >>> stack([row, row]).tokens.shape
      (2, 4)
    """
    first = rows[0]
    return Batch(
        tokens=np.stack([r.tokens for r in rows]),
        targets=np.stack([r.targets for r in rows]),
        loss_weights=np.stack([r.loss_weights for r in rows]),
        segment_ids=np.stack([r.segment_ids for r in rows]),
        positions=np.stack([r.positions for r in rows]),
        extra={name: np.stack([r.extra[name] for r in rows]) for name in first.extra},
    )


def seed_for(purpose: str, seed: int) -> int:
    """A 32-bit seed for one purpose."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
