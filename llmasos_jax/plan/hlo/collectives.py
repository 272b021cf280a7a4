"""Collectives of a program: how much, how often, among whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmasos_jax.plan.hlo.groups import Devices, members, routes
from llmasos_jax.plan.hlo.text import Line

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: of `COLLECTIVES`.
      num_bytes: of the whole array: what a gather gives, what a reduction takes, per device.
      ways: devices that take part in one group.
      runs: times that one step runs it.
      source: the JAX operation that it came from; empty where the compiler made it.
      axes: of the mesh, along which a group lies; empty where the mesh is not known.
      slices: that a group is in; more than one where it goes over the network between them.
    """

    kind: str
    num_bytes: int
    ways: int
    runs: int
    source: str
    axes: tuple[str, ...] = ()
    slices: int = 1

    @property
    def link_bytes(self) -> float:
        """Bytes that each device sends in one step, on a ring (Chan et al., 2007, section 5)."""
        share = {
            "all-reduce": 2 * (self.ways - 1) / self.ways,
            "collective-permute": 1.0,
        }.get(self.kind, (self.ways - 1) / self.ways)
        return self.runs * self.num_bytes * share

    @property
    def network_bytes(self) -> float:
        """Bytes that each device has to send to other slices in one step, at least.

        What a slice lacks is (slices - 1) / slices of the array, and its devices share the sending.
        """
        if self.slices == 1:
            return 0.0
        if self.kind == "collective-permute":
            return float(self.runs * self.num_bytes)
        share = (self.slices - 1) / self.ways * (2 if self.kind == "all-reduce" else 1)
        return self.runs * self.num_bytes * share


def read_collective(
    line: Line, lines: Mapping[str, Line], runs: int, devices: Devices, num_devices: int
) -> tuple[Collective | None, str | None]:
    """Reads one.

    Args:
      line: the instruction, or its start.
      lines: of its computation, by name.
      runs: times that it runs.
      devices: of the program.
      num_devices: that it was compiled for.

    Returns:
      The collective, None where each group is one device; and, where its groups are in a form that
      is not known, that text. It is then taken to be among all devices.
    """
    kind = line.op.removesuffix("-start")
    taken = sum(
        array.num_bytes for name in line.operands if name in lines for array in lines[name].arrays
    )
    unread = None
    if kind == "collective-permute":
        pairs = routes(line.attributes)
        if not pairs:
            unread = line.name
        ways = 2
        axes = {axis for pair in pairs for axis in devices.along(pair)}
        named = tuple(axis for axis in devices.axes if axis in axes)
        slices = max((devices.num_slices(pair) for pair in pairs), default=1)
    else:
        group = members(line.attributes, num_devices)
        if group is None:
            unread = re.sub(r".*(replica_groups=[^ ]{0,60}).*", r"\1", line.attributes)[:80]
            group = tuple(range(num_devices))
        ways, named, slices = len(group), devices.along(group), devices.num_slices(group)
        if ways == 1:
            return None, unread
    num_bytes = taken * ways if kind == "all-gather" else taken
    return Collective(kind, num_bytes, ways, runs, line.source, named, slices), unread
