"""What a fusion reads of its operands and writes of its results.

A fusion is worked out backwards: of its result so many numbers are wanted, hence so many of each
value that it is made of. A value that is only sliced is read in its slices; one that is updated in
a slot, in its own place, is neither read nor written beyond the slot.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmasos_jax.plan.hlo.collectives import COLLECTIVES
from llmasos_jax.plan.hlo.text import Array, Line

SLICES = ("dynamic-slice", "slice")
# Of one number of the result they may need all numbers of an operand; the others need one each.
_MIXING = frozenset(
    (
        "dot convolution reduce reduce-window select-and-scatter sort scatter custom-call map fft "
        "while call conditional tuple get-tuple-element cholesky triangular-solve rng"
    ).split()
) | frozenset(COLLECTIVES)


@dataclass
class _Need:
    """Numbers wanted of one value.

    Attributes:
      whole: by what goes through it number by number: its users want the same ones.
      slices: by slices: each wants its own.
      rows: by gathers, which fetch a row as often as it is named.
    """

    whole: int = 0
    slices: int = 0
    rows: int = 0

    def add(self, other: _Need) -> None:
        self.whole = max(self.whole, other.whole)
        self.slices += other.slices
        self.rows += other.rows

    def read(self, size: int) -> int:
        return min(size, self.whole + self.slices) + self.rows


def fusion_bytes(
    line: Line, operands: Sequence[Sequence[Array]], computations: Mapping[str, Sequence[Line]]
) -> int:
    """Bytes that one run reads from HBM and writes to it.

    Args:
      line: the fusion.
      operands: what it is given, in order.
      computations: of the program.

    Example:
      >>> from llmasos_jax.plan.hlo.text import parse
      >>> text = '''
      ... %slot (a: f32[8,4], b: f32[1,4], i: s32[]) -> f32[8,4] {
      ...   %a = f32[8,4] parameter(0)
      ...   %b = f32[1,4] parameter(1)
      ...   %i = s32[] parameter(2)
      ...   ROOT %c = f32[8,4] dynamic-update-slice(%a, %b, %i, %i)
      ... }
      ... ENTRY %main (a: f32[8,4], b: f32[1,4], i: s32[]) -> f32[8,4] {
      ...   %a = f32[8,4] parameter(0)
      ...   %b = f32[1,4] parameter(1)
      ...   %i = s32[] parameter(2)
      ...   ROOT %f = f32[8,4] fusion(%a, %b, %i), kind=kLoop, calls=%slot
      ... }'''
      >>> computations, entry = parse(text)
      >>> *given, fusion = computations[entry]
      >>> fusion_bytes(fusion, [one.arrays for one in given], computations)  # row, row, index
      36
    """
    name = line.called("calls")[0]
    lines = computations.get(name, ())
    body = _Body(lines, computations, is_later_part(name, lines))
    root = body.root
    if root is None:
        return sum(map(in_hbm, operands)) + in_hbm(line.arrays)
    if '"AsyncCollectiveDone"' in root.rest:
        return 0
    if '"AsyncCollectiveStart"' in root.rest:
        # Its type names the operand, the result, and flags; the work is the collective's.
        made = [body.named[one] for one in root.operands if one in body.named]
        given = [array for one in made for array in one.arrays]
        names = tuple(one.name for one in made)
    else:
        given = list(line.arrays)
        names = root.operands if root.op == "tuple" else (root.name,)
    if len(names) != len(given):
        return sum(map(in_hbm, operands)) + in_hbm(line.arrays)
    written, wanted = body.written(names, given)
    total = written
    for index, need in body.reads(wanted).items():
        for array in operands[index][:1] if index < len(operands) else ():
            size = math.prod(array.shape)
            total += in_hbm([array]) * need.read(size) // max(1, size)
    return total


def is_later_part(name: str, lines: Sequence[Line]) -> bool:
    """Whether a fusion is the middle or the end of an asynchronous collective.

    One stands in its start, in fusions with other work beside which it goes on, and in its end.
    """
    done = any('"AsyncCollectiveDone"' in line.rest for line in lines if line.is_root)
    return done or name.startswith("async_collective_fusion")


def adds(scatter: Line, computations: Mapping[str, Sequence[Line]]) -> bool:
    """Whether what was in a slot goes into what will be; of an update without a rule it does not.

    Args:
      scatter: or another update.
      computations: of the program.
    """
    rules = [computations.get(name, ()) for name in scatter.called("to_apply")]
    return any(line.is_root and line.op != "parameter" for rule in rules for line in rule)


def in_hbm(arrays: Sequence[Array]) -> int:
    """Bytes of those that are not on the chip."""
    return sum(array.num_bytes for array in arrays if array.space == 0)


class _Body:
    def __init__(
        self,
        lines: Sequence[Line],
        computations: Mapping[str, Sequence[Line]],
        passes: bool = False,
    ) -> None:
        self.lines, self.computations, self.passes = lines, computations, passes
        self.named = {line.name: line for line in lines}
        self.root = next((line for line in lines if line.is_root), None)

    def written(self, names: Sequence[str], given: Sequence[Array]) -> tuple[int, dict[str, int]]:
        """Bytes that are written, and how many numbers of which values are wanted for that."""
        total, wanted = 0, {}
        for name, array in zip(names, given, strict=True):
            slots = self._slots(name, array.space)
            if slots is None:
                total += in_hbm([array])
                wanted[name] = math.prod(array.shape)
                continue
            for update in slots:
                place = 1 if update.op == "dynamic-update-slice" else -1
                for name in update.operands[1:]:
                    wanted[name] = _size(self.named[name]) if name in self.named else 0
                part = wanted[update.operands[place]] / max(1, math.prod(array.shape))
                times = 2 if adds(update, self.computations) else 1
                total += times * round(in_hbm([array]) * min(1.0, part))
        return total, wanted

    def reads(self, wanted: Mapping[str, int]) -> dict[int, _Need]:
        """What is wanted of each parameter, by its number."""
        needs: defaultdict[str, _Need] = defaultdict(_Need)
        found: dict[int, _Need] = {}
        for name, numbers in wanted.items():
            needs[name].add(_Need(numbers))
        for line in reversed(self.lines):
            need = needs[line.name]
            numbers = min(_size(line), need.read(_size(line)))
            if line.op == "parameter":
                found[int(line.arguments)] = need
            elif numbers and not (self.passes and line.op in COLLECTIVES):
                for name, part in self._of(line, numbers):
                    needs[name].add(part)
        return found

    def _of(self, line: Line, numbers: int) -> list[tuple[str, _Need]]:
        """What an instruction needs of its operands for so many numbers of its result."""
        sizes = [_size(self.named[name]) if name in self.named else 0 for name in line.operands]
        if line.op == "fusion" and line.called("calls"):
            inner = _Body(self.computations.get(line.called("calls")[0], ()), self.computations)
            if inner.root is not None:
                found = inner.reads({inner.root.name: numbers})
                return [(line.operands[i], n) for i, n in found.items() if i < len(sizes)]
        if line.op in _MIXING or line.op == "fusion":
            needs = [_Need(size) for size in sizes]
        elif line.op in SLICES:
            needs = [_Need(slices=numbers), *map(_Need, sizes[1:])]
        elif line.op == "gather":
            needs = [_Need(rows=numbers), *map(_Need, sizes[1:])]
        elif line.op == "dynamic-update-slice":
            slot = min(sizes[1], numbers)
            needs = [_Need(numbers - slot), _Need(slot), *map(_Need, sizes[2:])]
        else:
            needs = [_Need(min(size, numbers)) for size in sizes]
        return list(zip(line.operands, needs, strict=True))

    def _slots(self, name: str, space: int) -> list[Line] | None:
        """The updates, if a value is a parameter that is only updated, in the same memory."""
        line = self.named.get(name)
        if line is None:
            return None
        if line.op == "parameter":
            return [] if line.arrays and line.arrays[0].space == space else None
        if line.op == "bitcast":
            return self._slots(line.operands[0], space)
        if self.passes and line.op in COLLECTIVES:
            return []
        if line.op == "fusion":
            # Another name for its operand, such as the same memory in other tiles.
            same = re.search(r"output_to_operand_aliasing=\{\{\}: \((\d+), \{\}\)\}", line.rest)
            return self._slots(line.operands[int(same[1])], space) if same else None
        if line.op in ("dynamic-update-slice", "scatter"):
            before = self._slots(line.operands[0], space)
            return None if before is None else [*before, line]
        return None


def _size(line: Line) -> int:
    return sum(math.prod(array.shape) for array in line.arrays)
