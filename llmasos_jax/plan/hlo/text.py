"""The lines of a compiled program's text, and what a type in it says."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_BITS = {"pred": 8, "f64": 64, "s64": 64, "u64": 64, "c64": 64, "f32": 32, "s32": 32, "u32": 32}
_BITS |= {"bf16": 16, "f16": 16, "s16": 16, "u16": 16, "s4": 4, "u4": 4, "s2": 2, "u2": 2}


@dataclass(frozen=True)
class Array:
    """One array of a type.

    Attributes:
      dtype: as XLA writes it, "bf16".
      shape: sizes.
      space: memory space: 0 is HBM, 5 the host's, the others are on the chip.
      padded: numbers that its tiles take.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int
    padded: int

    @property
    def num_bytes(self) -> int:
        """Without padding."""
        return -(-math.prod(self.shape) * _BITS.get(self.dtype, 8) // 8)

    @property
    def padded_bytes(self) -> int:
        """That it takes in memory."""
        return -(-self.padded * _BITS.get(self.dtype, 8) // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Line:
    """One instruction.

    Attributes:
      is_root: whether it is what its computation gives.
      name: without "%".
      type: of what it gives.
      op: its operation, such as "fusion".
      rest: operands and all that follows.
    """

    is_root: bool
    name: str
    type: str
    op: str
    rest: str

    @cached_property
    def _split(self) -> tuple[str, str]:
        depth = 1
        for place, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return self.rest[:place], self.rest[place + 1 :]
        return self.rest, ""

    @property
    def arguments(self) -> str:
        """The text between the brackets."""
        return self._split[0]

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of what it takes."""
        return tuple(re.findall(r"%([^\s,()]+)", self._split[0]))

    @property
    def attributes(self) -> str:
        """What stands behind the operands."""
        return self._split[1]

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Of its type, a tuple's flat and in order."""
        return arrays(self.type)

    @property
    def source(self) -> str:
        """The JAX operation that it came from; empty where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1].replace("\\'", "'") if found else ""

    def called(self, *names: str) -> tuple[str, ...]:
        """Computations that it names under these attributes, in order."""
        found: list[str] = []
        for name in names:
            for group in re.findall(rf"\b{name}=\{{?((?:%[^\s,}}]+(?:, )?)+)", self.attributes):
                found += re.findall(r"%([^\s,}]+)", group)
        return tuple(found)


def parse(text: str) -> tuple[dict[str, list[Line]], str]:
    """The computations of a program by name, and the name of the one that it starts with."""
    computations: dict[str, list[Line]] = {}
    entry, lines = "", []
    for row in text.splitlines():
        if head := _COMPUTATION.match(row):
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(row):
            lines.append(Line(bool(found[1]), *found.groups()[1:]))
    return computations, entry


def arrays(type_text: str) -> tuple[Array, ...]:
    """The arrays of a type, a tuple's flat and in order.

    Example:
      >>> arrays("(f32[3,100]{1,0:T(8,128)}, bf16[2]{0:T(256)S(1)})")[0].padded
      1024
    """
    return tuple(
        _array(dtype, sizes, layout, tiles)
        for dtype, sizes, layout, tiles in _ARRAY.findall(type_text)
    )


def _array(dtype: str, sizes: str, layout: str, tiles: str) -> Array:
    shape = _ints(sizes)
    space = re.search(r"S\((\d+)\)", tiles)
    return Array(dtype, shape, int(space[1]) if space else 0, _padded(shape, _ints(layout), tiles))


def _padded(shape: tuple[int, ...], minor_first: tuple[int, ...], tiles: str) -> int:
    tile = _TILE.search(tiles)
    if tile is None or len(minor_first) != len(shape):
        return math.prod(shape)
    in_memory = [shape[axis] for axis in reversed(minor_first)]
    for back, size in enumerate(reversed(_ints(tile[1])), start=1):
        if back <= len(in_memory):
            in_memory[-back] = -(-in_memory[-back] // size) * size
    return math.prod(in_memory)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def bits(dtype: str) -> int:
    """Of one number; 8 for the kinds of 8 bits, of which there are many."""
    return _BITS.get(dtype, 8)
