"""Compares the arrays of two checkpoints or models, one layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from llmasos_jax.checkpoint.leaves import is_stacked
from llmasos_jax.checkpoint.stored import StoredState


@dataclass(frozen=True)
class Stored:
    """An array on disk: what it is ("float32[4,6]"), and its numbers, part by part."""

    kind: str
    parts: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class LeafDifference:
    """How one leaf differs.

    Attributes:
      name: of the leaf.
      a, b: what it is on each side.
      max_abs: the largest absolute difference; None where shapes differ, NaN where one is NaN.
      count: numbers whose bits differ; None where shapes or dtypes differ.
      total: numbers in all.
    """

    name: str
    a: str
    b: str
    max_abs: float | None
    count: int | None
    total: int


@dataclass(frozen=True)
class Difference:
    """What differs between two.

    Attributes:
      same: leaves that are equal in every bit.
      different: leaves that are on both sides and differ.
      only_a, only_b: leaves of one side, what each is by name.
    """

    same: int
    different: tuple[LeafDifference, ...]
    only_a: dict[str, str]
    only_b: dict[str, str]

    @property
    def is_same(self) -> bool:
        """Whether both have the same leaves, bit for bit."""
        return not (self.different or self.only_a or self.only_b)


def stored_leaves(state: StoredState) -> dict[str, Stored]:
    """The leaves of a checkpoint, each layer a part."""

    def parts(name: str) -> Callable[[], Iterator[np.ndarray]]:
        def read() -> Iterator[np.ndarray]:
            shape = state.leaves[name].shape
            if is_stacked(name) and shape and math.prod(shape):
                yield from (state.read(name, layer) for layer in range(shape[0]))
            else:
                yield state.read(name)

        return read

    return {name: Stored(str(leaf), parts(name)) for name, leaf in state.leaves.items()}


def compare(a: Mapping[str, Stored], b: Mapping[str, Stored]) -> Difference:
    """Compares what has the same name; NaNs of the same bits are equal.

    Example:
      >>> def of(*numbers):
      ...     return {"w": Stored(f"float32[{len(numbers)}]", lambda: iter([np.float32(numbers)]))}
      >>> compare(of(1, 2), of(1, 2.5)).different[0].max_abs, compare(of(1), of(1)).is_same
      (0.5, True)
    """
    different = []
    both = [name for name in a if name in b]
    for name in both:
        found = _compare(name, a[name], b[name])
        if found is not None:
            different.append(found)
    return Difference(
        same=len(both) - len(different),
        different=tuple(different),
        only_a={name: a[name].kind for name in a if name not in b},
        only_b={name: b[name].kind for name in b if name not in a},
    )


def _compare(name: str, a: Stored, b: Stored) -> LeafDifference | None:
    if _shape(a.kind) != _shape(b.kind):
        return LeafDifference(name, a.kind, b.kind, None, None, 0)
    largest, count, total, is_same_type = 0.0, 0, 0, a.kind == b.kind
    for one, two in zip(a.parts(), b.parts(), strict=True):
        total += one.size
        if is_same_type:
            bits = f"u{one.dtype.itemsize}"
            apart = one.reshape(-1).view(bits) != two.reshape(-1).view(bits)
            if not apart.any():
                continue
            count += int(apart.sum())
        with np.errstate(invalid="ignore"):
            gaps = np.abs(one.astype(np.float64) - two.astype(np.float64)).reshape(-1)
        # Of two equal infinities the difference is none.
        gap = float(np.max(np.where(one.reshape(-1) == two.reshape(-1), 0.0, gaps), initial=0.0))
        largest = gap if math.isnan(gap) or gap > largest else largest
    if is_same_type and not count:
        return None
    return LeafDifference(name, a.kind, b.kind, largest, count if is_same_type else None, total)


def _shape(kind: str) -> str:
    return kind[kind.index("[") :]
