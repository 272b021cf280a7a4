"""Reads the text of a program compiled for TPU: its collectives and kernels, loops multiplied out.

XLA's own `cost_analysis` counts the body of a loop once, so of a scanned model it sees one layer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLS = re.compile(r"(?:calls|to_apply|branch_computations)=\{?((?:%[^\s,}]+(?:, )?)+)")
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"bf16": 2, "f16": 2, "s16": 2, "u16": 2}


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: of `COLLECTIVES`.
      num_bytes: of the whole array: what a gather gives, what a reduction takes, per device.
      ways: devices that take part in one group.
      runs: times that one step runs it.
      source: the JAX operation that it came from; empty where the compiler made it.
    """

    kind: str
    num_bytes: int
    ways: int
    runs: int
    source: str

    @property
    def link_bytes(self) -> float:
        """Bytes that each device sends in one step, on a ring (Chan et al., 2007, section 5)."""
        share = {
            "all-reduce": 2 * (self.ways - 1) / self.ways,
            "collective-permute": 1.0,
        }.get(self.kind, (self.ways - 1) / self.ways)
        return self.runs * self.num_bytes * share


@dataclass(frozen=True)
class Program:
    """What one device runs in one step.

    Attributes:
      collectives: all of more than one device.
      kernels: Pallas kernels by name, with the times that they run.
      cycles: the compiler's own estimates, added up. Neither kernels nor collectives are in it: a
        ratio between two programs for one kind of chip, not a time.
      endless: loops whose number of turns the text does not tell; counted as one turn.
    """

    collectives: tuple[Collective, ...]
    kernels: dict[str, int]
    cycles: int
    endless: tuple[str, ...]

    def of(self, kind: str) -> tuple[Collective, ...]:
        """The collectives of one kind."""
        return tuple(c for c in self.collectives if c.kind == kind)

    def link_bytes(self, *kinds: str) -> float:
        """Bytes that each device sends in one step, by these kinds or by all."""
        return sum(c.link_bytes for c in self.collectives if not kinds or c.kind in kinds)


@dataclass(frozen=True)
class _Line:
    is_root: bool
    name: str
    type: str
    op: str
    rest: str


def read_program(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Example:
      >>> lines = ["ENTRY %main (x: f32[8]) -> f32[8] {",
      ...          "  %x = f32[8] parameter(0)",
      ...          "  ROOT %y = f32[8] all-reduce(%x), replica_groups={{0,1}}",
      ...          "}"]
      >>> read_program(chr(10).join(lines)).link_bytes("all-reduce")
      32.0
    """
    computations, entry = _parse(text)
    reader = _Reader(computations)
    reader.walk(entry, 1)
    return Program(
        tuple(reader.collectives), dict(reader.kernels), reader.cycles, tuple(reader.endless)
    )


class _Reader:
    def __init__(self, computations: dict[str, list[_Line]]) -> None:
        self.computations = computations
        self.collectives: list[Collective] = []
        self.kernels: Counter[str] = Counter()
        self.cycles = 0
        self.endless: list[str] = []

    def walk(self, name: str, runs: int, *, scatters: bool = False) -> None:
        lines = self.computations.get(name, [])
        repeats = _repeats_a_collective(name, lines)
        types = {line.name: line.type for line in lines}
        for line in lines:
            if estimate := re.search(r'estimated_cycles":"(\d+)"', line.rest):
                self.cycles += runs * int(estimate[1])
            kind = line.op.removesuffix("-start")
            if kind in COLLECTIVES:
                if not repeats:
                    self._add(line, kind, types, runs, scatters)
            elif line.op == "custom-call" and '"tpu_custom_call"' in line.rest:
                self.kernels[re.sub(r"[.\d]+$", "", line.name)] += runs
            elif line.op == "while":
                body, turns = self._loop(line)
                self.walk(body, runs * turns)
            else:
                for inner in _called(line):
                    # A TPU writes some reduce-scatters as a fusion around an all-reduce.
                    self.walk(inner, runs, scatters=inner.startswith("all-reduce-scatter"))

    def _add(
        self, line: _Line, kind: str, types: dict[str, str], runs: int, scatters: bool
    ) -> None:
        ways = _ways(line.rest)
        if ways == 1 and kind != "collective-permute":
            return
        operands = re.findall(r"%([^\s,()]+)", line.rest.split("), ")[0])
        taken = sum(_num_bytes(types.get(name, "")) for name in operands)
        source = re.search(r'op_name="([^"]*)"', line.rest)
        self.collectives.append(
            Collective(
                kind="reduce-scatter" if scatters and kind == "all-reduce" else kind,
                num_bytes=taken * ways if kind == "all-gather" else taken,
                ways=ways,
                runs=runs,
                source=source[1] if source else "",
            )
        )

    def _loop(self, line: _Line) -> tuple[str, int]:
        body, condition = (
            re.search(rf"{part}=%?([^\s,]+)", line.rest) for part in ("body", "condition")
        )
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest)
        turns = int(known[1]) if known else None
        if turns is None and condition:
            turns = _bound(self.computations.get(condition[1], []))
        if turns is None:
            self.endless.append(line.name)
        return body[1] if body else "", turns or 1


def _parse(text: str) -> tuple[dict[str, list[_Line]], str]:
    computations: dict[str, list[_Line]] = {}
    entry, lines = "", []
    for row in text.splitlines():
        if head := _COMPUTATION.match(row):
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(row):
            lines.append(_Line(bool(found[1]), *found.groups()[1:]))
    return computations, entry


def _repeats_a_collective(name: str, lines: list[_Line]) -> bool:
    """An asynchronous collective stands in its start, beside other work, and in its end."""
    done = any('"AsyncCollectiveDone"' in line.rest for line in lines if line.is_root)
    return done or name.startswith("async_collective_fusion")


def _bound(condition: list[_Line]) -> int | None:
    """Turns of `for (i = 0; i < n; i++)`, which is how JAX writes a scan."""
    constants = {
        line.name: int(line.rest.split(")")[0])
        for line in condition
        if line.op == "constant" and re.match(r"\d+\)", line.rest)
    }
    for line in condition:
        if line.is_root and line.op == "compare" and "direction=LT" in line.rest:
            return next((n for name, n in constants.items() if f"%{name})" in line.rest), None)
    return None


def _called(line: _Line) -> Iterator[str]:
    for names in _CALLS.findall(line.rest):
        yield from re.findall(r"%([^\s,}]+)", names)


def _ways(rest: str) -> int:
    """Devices in a group, in any of the three ways in which XLA writes groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(tiled[2])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?: \{([^}]*)\})?", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2] or ""))
    return 1


def _num_bytes(type_text: str) -> int:
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * _BYTES.get(dtype, 1)
        for dtype, sizes in re.findall(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]", type_text)
    )
