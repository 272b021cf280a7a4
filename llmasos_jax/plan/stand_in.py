"""Devices of a TPU pod that are neither here nor known to a compiler: places on a torus."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from llmasos_jax.plan.chips import Topology

# As JAX names them: by that it lays a mesh out.
_KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}


@dataclass(frozen=True)
class StandIn:
    """What a mesh and its shardings ask of a device; no program compiles for it.

    Attributes:
      id: counts over all slices.
      coords: its chip's place on the torus.
      core_on_chip: which of the chip's devices.
      slice_index: of its slice.
      device_kind: what JAX calls the chip.
      platform: "tpu".
      process_index: 0: one process stands for all.
    """

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int
    slice_index: int
    device_kind: str
    platform: str = "tpu"
    process_index: int = 0


def stand_ins(topology: Topology) -> list[StandIn]:
    """A device for each that JAX would see on the topology, in its order.

    Example:
      >>> from llmasos_jax.plan.chips import parse_topology
      >>> [device.coords for device in stand_ins(parse_topology("v5e:2x2"))]
      [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    """
    kind = _KINDS[topology.chip.name]
    x, y, z = (*topology.shape, 1)[:3]
    places = itertools.product(
        range(topology.slices), range(z), range(y), range(x), range(topology.chip.devices)
    )
    return [
        StandIn(number, (at_x, at_y, at_z), core, slice_index, kind)
        for number, (slice_index, at_z, at_y, at_x, core) in enumerate(places)
    ]
