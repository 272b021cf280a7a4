"""How other people's files lay out a weight, and the way there and back.

Every layout is a bijection between some of our tensors and some of theirs. Nothing is computed:
numbers are moved, so a weight keeps its bits.

    theirs, fused [N*H + 2*K*H, D]        ours
    q rows | k rows | v rows              q [D, N, H], k [D, K, H], v [D, K, H]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmasos_jax.format.tensorfile import StoredTensor

Shape = tuple[int, ...]


class Arrangement(Protocol):
    """A bijection between a group of our tensors and a group of theirs."""

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """The shapes that theirs must have, given ours."""
        ...

    def take(self, index: int, theirs: Sequence[StoredTensor], ours: Sequence[Shape]) -> np.ndarray:
        """Our tensor number `index`: a view of theirs where that is possible."""
        ...

    def give(self, index: int, ours: Sequence[StoredTensor]) -> np.ndarray:
        """Their tensor number `index`, of all of ours in the group."""
        ...


@dataclass(frozen=True)
class Same:
    """The same axes in the same order: tables, and what else both sides store alike.

    Attributes:
      dropped: leading rows of theirs that nothing reads (OPT and RoBERTa count positions from 2);
        on the way back they are zeros.
    """

    dropped: int = 0

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """See `Arrangement`."""
        (shape,) = ours
        return [(shape[0] + self.dropped, *shape[1:])]

    def take(self, index: int, theirs: Sequence[StoredTensor], ours: Sequence[Shape]) -> np.ndarray:
        """See `Arrangement`."""
        return theirs[0].read()[self.dropped :]

    def give(self, index: int, ours: Sequence[StoredTensor]) -> np.ndarray:
        """See `Arrangement`."""
        array = ours[0].read()
        if not self.dropped:
            return array
        rows = np.zeros((self.dropped, *array.shape[1:]), array.dtype)
        return np.concatenate([rows, array])


@dataclass(frozen=True)
class Product:
    """A product: theirs [out, in], ours [in..., out...]; several of ours may be fused into one.

    Attributes:
      num_in: our leading axes that the product contracts (2 for `attn.o`); 0 for a vector: a bias
        or a scale.
      is_in_first: whether theirs is [in, out] (GPT-2's Conv1D).
      groups: theirs repeats the fused parts so many times: 1 is all of q, all of k, all of v; the
        number of heads is q, k, v of the first head, then of the second (GPT-NeoX).
      is_paired: whether theirs has neighbours (0, 1), (2, 3) of each head where ours has the two
        halves (LLaMA in GGUF).
      num_lead: our leading axes that theirs has too, in front (1 for all experts in one tensor).

    Example:
      >>> Product().shapes([(8, 2, 3), (8, 1, 3)])
      [(9, 8)]
    """

    num_in: int = 1
    is_in_first: bool = False
    groups: int = 1
    is_paired: bool = False
    num_lead: int = 0

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """See `Arrangement`."""
        lead = ours[0][: self.num_lead]
        rows = sum(self._rows(shape) for shape in ours)
        if not self.num_in:
            return [(*lead, rows)]
        columns = self._columns(ours[0])
        return [(*lead, columns, rows) if self.is_in_first else (*lead, rows, columns)]

    def take(self, index: int, theirs: Sequence[StoredTensor], ours: Sequence[Shape]) -> np.ndarray:
        """See `Arrangement`."""
        return self.arrange(theirs[0].read(), index, ours)

    def arrange(self, array: np.ndarray, index: int, ours: Sequence[Shape]) -> np.ndarray:
        """Our tensor number `index` out of theirs."""
        shape = ours[index]
        lead, columns = shape[: self.num_lead], self._columns(shape)
        if self.is_in_first:
            array = array.swapaxes(-1, -2)
        widths = [self._rows(other) // self.groups for other in ours]
        start = sum(widths[:index])
        array = array.reshape(*lead, self.groups, sum(widths), columns)
        array = array[..., start : start + widths[index], :]
        if self.is_paired:
            half = shape[-1] // 2
            array = array.reshape(*lead, -1, half, 2, columns).swapaxes(-3, -2)
        # What cannot be a view is copied here, output axes first, as products on a CPU read it.
        array = array.reshape(*lead, *self._out(shape), columns)
        return np.moveaxis(array, -1, self.num_lead).reshape(shape)

    def give(self, index: int, ours: Sequence[StoredTensor]) -> np.ndarray:
        """See `Arrangement`."""
        parts = [self._part(tensor.read()) for tensor in ours]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)
        array = array.reshape(self._turned(self.shapes([tensor.shape for tensor in ours])[0]))
        return array.swapaxes(-1, -2) if self.is_in_first else array

    def _part(self, array: np.ndarray) -> np.ndarray:
        """One of ours as [lead..., groups, rows of a group, in]."""
        shape = array.shape
        lead, columns = shape[: self.num_lead], self._columns(shape)
        array = array.reshape(*lead, columns, *self._out(shape))
        array = np.moveaxis(array, self.num_lead, -1)
        if self.is_paired:
            half = shape[-1] // 2
            array = array.reshape(*lead, -1, 2, half, columns).swapaxes(-3, -2)
        return array.reshape(*lead, self.groups, -1, columns)

    def _turned(self, shape: Shape) -> Shape:
        return (*shape[:-2], shape[-1], shape[-2]) if self.is_in_first else shape

    def _out(self, shape: Shape) -> Shape:
        return shape[self.num_lead + self.num_in :]

    def _rows(self, shape: Shape) -> int:
        return math.prod(self._out(shape))

    def _columns(self, shape: Shape) -> int:
        return math.prod(shape[self.num_lead : self.num_lead + self.num_in])


@dataclass(frozen=True)
class PerExpert:
    """Theirs has one [out, in] tensor for each expert, ours all experts in one [E, in, out]."""

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """See `Arrangement`."""
        ((count, num_in, num_out),) = ours
        return [(num_out, num_in)] * count

    def take(self, index: int, theirs: Sequence[StoredTensor], ours: Sequence[Shape]) -> np.ndarray:
        """See `Arrangement`."""
        first = theirs[0].read()
        stacked = np.empty((len(theirs), *first.shape), first.dtype)
        stacked[0] = first
        for row, tensor in zip(stacked[1:], theirs[1:], strict=True):
            row[...] = tensor.read()
        return stacked.swapaxes(-1, -2)

    def give(self, index: int, ours: Sequence[StoredTensor]) -> np.ndarray:
        """See `Arrangement`."""
        return ours[0].read()[index].T


@dataclass(frozen=True)
class Twice:
    """A vector that theirs has twice, where their program reads the first alone."""

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """See `Arrangement`."""
        (shape,) = ours
        return [shape, shape]

    def take(self, index: int, theirs: Sequence[StoredTensor], ours: Sequence[Shape]) -> np.ndarray:
        """See `Arrangement`."""
        return theirs[0].read()

    def give(self, index: int, ours: Sequence[StoredTensor]) -> np.ndarray:
        """See `Arrangement`."""
        return ours[0].read()


SAME = Same()
PRODUCT = Product()
VECTOR = Product(num_in=0)
OUT_OF_HEADS = Product(num_in=2)
PER_EXPERT = PerExpert()
ALL_EXPERTS = Product(num_lead=1)
TWICE = Twice()
