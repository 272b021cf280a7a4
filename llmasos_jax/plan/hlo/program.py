"""What one device runs in one step, from the text of the compiled program.

XLA's own `cost_analysis` counts the body of a loop once, so of a scanned model it sees one layer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmasos_jax.plan.hlo.collectives import COLLECTIVES, Collective, read_collective
from llmasos_jax.plan.hlo.fused import is_later_part
from llmasos_jax.plan.hlo.groups import Devices
from llmasos_jax.plan.hlo.products import product_flops
from llmasos_jax.plan.hlo.text import Line, bits, parse
from llmasos_jax.plan.hlo.traffic import hbm_bytes
from llmasos_jax.plan.hlo.turns import Scope, turns


@dataclass(frozen=True)
class Kernel:
    """A Pallas kernel in the text.

    Attributes:
      name: without its number.
      runs: times that one step runs it.
      operands: shapes of what it takes, where the text says them.
    """

    name: str
    runs: int
    operands: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Program:
    """What one device runs in one step.

    Attributes:
      collectives: all of more than one device.
      kernels: Pallas kernels by name, with the times that they run.
      cycles: the compiler's own estimates, added up. Neither kernels nor collectives are in it: a
        ratio between two programs for one kind of chip, not a time.
      endless: loops whose number of turns the text does not tell; counted as one turn.
      flops: of the matrix products, kernels not counted.
      narrow_flops: those of them between numbers of 8 bits or fewer.
      hbm_bytes: operands and results of what runs, where they are in HBM: an estimate.
      kernel_calls: the kernels again, with their shapes.
      branches: conditionals; counted with the branch that multiplies most.
      unread: groups of devices in a form that is not known; taken to be all devices.
      uncosted: what the compiler has no estimate of cycles for.
    """

    collectives: tuple[Collective, ...]
    kernels: dict[str, int]
    cycles: int
    endless: tuple[str, ...]
    flops: int = 0
    narrow_flops: int = 0
    hbm_bytes: int = 0
    kernel_calls: tuple[Kernel, ...] = ()
    branches: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    uncosted: tuple[str, ...] = ()

    def of(self, kind: str) -> tuple[Collective, ...]:
        """The collectives of one kind."""
        return tuple(c for c in self.collectives if c.kind == kind)

    def link_bytes(self, *kinds: str) -> float:
        """Bytes that each device sends in one step, by these kinds or by all."""
        return sum(c.link_bytes for c in self.collectives if not kinds or c.kind in kinds)


def read_program(text: str, devices: Devices | None = None) -> Program:
    """Reads `compiled.as_text()`.

    Args:
      text: of a program after scheduling.
      devices: that it was compiled for; without them a collective does not know its axes.

    Example:
      >>> lines = ["ENTRY %main (x: f32[8]) -> f32[8] {",
      ...          "  %x = f32[8] parameter(0)",
      ...          "  ROOT %y = f32[8] all-reduce(%x), replica_groups={{0,1}}",
      ...          "}"]
      >>> read_program(chr(10).join(lines)).link_bytes("all-reduce")
      32.0
    """
    computations, entry = parse(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    reader = _Reader(computations, devices or Devices({}), int(partitions[1]) if partitions else 1)
    found = reader.walk(entry, 1, top=True)
    return Program(
        tuple(found.collectives),
        dict(found.kernels),
        found.cycles,
        tuple(found.endless),
        found.flops,
        found.narrow_flops,
        found.hbm_bytes,
        tuple(found.calls),
        tuple(found.branches),
        tuple(dict.fromkeys(found.unread)),
        tuple(dict.fromkeys(found.uncosted)),
    )


# What the compiler writes where it has no estimate is the largest number of 64 bits.
_UNKNOWN = 2**63 - 1


@dataclass
class _Found:
    """What was added up so far."""

    collectives: list[Collective] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)
    calls: list[Kernel] = field(default_factory=list)
    cycles: int = 0
    flops: int = 0
    narrow_flops: int = 0
    hbm_bytes: int = 0
    endless: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    uncosted: list[str] = field(default_factory=list)

    def add(self, other: _Found) -> None:
        for name in ("collectives", "calls", "endless", "branches", "unread", "uncosted"):
            getattr(self, name).extend(getattr(other, name))
        self.kernels.update(other.kernels)
        for name in ("cycles", "flops", "narrow_flops", "hbm_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def weight(self) -> tuple[int, int, float]:
        """By which the heaviest of several branches is found."""
        return self.flops, self.cycles, sum(c.link_bytes for c in self.collectives)


class _Reader:
    def __init__(
        self, computations: dict[str, list[Line]], devices: Devices, num_devices: int
    ) -> None:
        self.computations, self.devices = computations, devices
        self.num_devices = max(num_devices, math.prod(devices.axes.values()))

    def walk(
        self,
        name: str,
        runs: int,
        *,
        top: bool,
        scatters: bool = False,
        scope: Scope | None = None,
    ) -> _Found:
        """Adds up a computation that runs so many times.

        Args:
          name: of the computation.
          runs: times that it runs.
          top: whether its instructions read and write memory; inside of a fusion they do not.
          scatters: whether an all-reduce in it is half of a reduce-scatter.
          scope: what is known of the tuple that it is given; nothing by default.
        """
        found, body = _Found(), self.computations.get(name, [])
        repeats = is_later_part(name, body)
        scope = scope or Scope({line.name: line for line in body})
        lines = scope.lines
        for line in body:
            if estimate := re.search(r'estimated_cycles":"(\d+)"', line.rest):
                if int(estimate[1]) < _UNKNOWN:
                    found.cycles += runs * int(estimate[1])
                else:
                    found.uncosted.append(line.name)
            if top:
                found.hbm_bytes += runs * hbm_bytes(line, lines, self.computations)
            if line.op in ("dot", "convolution"):
                self._product(found, line, lines, runs)
            elif line.op.removesuffix("-start") in COLLECTIVES:
                if not repeats:
                    self._collective(found, line, lines, runs, scatters)
            elif line.op == "custom-call" and '"tpu_custom_call"' in line.rest:
                kernel = Kernel(re.sub(r"[.\d]+$", "", line.name), runs, _operands(line, lines))
                found.kernels[kernel.name] += runs
                found.calls.append(kernel)
            elif line.op == "while":
                count, inside = turns(line, scope, self.computations)
                if count is None:
                    found.endless.append(line.name)
                times = runs * (1 if count is None else count)
                for inner in line.called("body"):
                    found.add(self.walk(inner, times, top=top, scope=inside))
            elif line.op == "conditional":
                names = line.called("branch_computations", "true_computation", "false_computation")
                found.branches.append(line.name)
                ways = [self.walk(inner, runs, top=top) for inner in names]
                found.add(max(ways, key=lambda way: way.weight, default=_Found()))
            else:
                whole = top and line.op in ("call", "async-start", "call-start")
                for inner in line.called("calls", "called_computations", "to_apply"):
                    # A TPU writes some reduce-scatters as a fusion around an all-reduce.
                    is_half = inner.startswith("all-reduce-scatter")
                    found.add(self.walk(inner, runs, top=whole, scatters=is_half))
        return found

    def _product(self, found: _Found, line: Line, lines: Mapping[str, Line], runs: int) -> None:
        flops = runs * product_flops(line, lines)
        found.flops += flops
        if all(bits(lines[name].arrays[0].dtype) <= 8 for name in line.operands[:2]):
            found.narrow_flops += flops

    def _collective(
        self, found: _Found, line: Line, lines: Mapping[str, Line], runs: int, scatters: bool
    ) -> None:
        one, unread = read_collective(line, lines, runs, self.devices, self.num_devices)
        if unread:
            found.unread.append(unread)
        if one is not None:
            kind = "reduce-scatter" if scatters and one.kind == "all-reduce" else one.kind
            found.collectives.append(
                Collective(kind, one.num_bytes, one.ways, runs, one.source, one.axes, one.slices)
            )


def _operands(line: Line, lines: Mapping[str, Line]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        array.shape for name in line.operands if name in lines for array in lines[name].arrays[:1]
    )
