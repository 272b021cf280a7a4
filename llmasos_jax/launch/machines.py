"""How clouds call a TPU chip, and how many of them one machine has: one table.

Names are those of cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and
cloud.google.com/tpu/docs, read in November 2026.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmasos_jax.errors import ConfigError
from llmasos_jax.plan.chips import Topology


@dataclass(frozen=True)
class Machine:
    """What a chip is called outside.

    Attributes:
      gke: value of the node label cloud.google.com/gke-tpu-accelerator.
      accelerator: the TPU API's name of a slice, before its number.
      cores_counted: cores of a chip that this number counts.
      single_host: chips that one machine may have, when the slice is that machine alone.
      xpk_single_host: those of them that XPK knows; a larger slice has machines of four chips.
      has_tpu_vm: whether it can be had as a TPU VM.
    """

    gke: str
    accelerator: str
    cores_counted: int
    single_host: tuple[int, ...]
    xpk_single_host: tuple[int, ...] = (4,)
    has_tpu_vm: bool = True


MACHINES = {
    "v4": Machine("tpu-v4-podslice", "v4", 2, (4,)),
    "v5e": Machine("tpu-v5-lite-podslice", "v5litepod", 1, (1, 4, 8), ()),
    "v5p": Machine("tpu-v5p-slice", "v5p", 2, (4,)),
    "v6e": Machine("tpu-v6e-slice", "v6e", 1, (1, 4, 8), (1, 4)),
    "tpu7x": Machine("tpu7x", "tpu7x", 2, (4,), has_tpu_vm=False),
}

_CHIPS_PER_HOST = 4  # of every slice of several machines

# Shapes that can be had. Of three axes also every one of multiples of four, the smallest first.
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclass(frozen=True)
class Slice:
    """One slice of a run, as machines.

    Attributes:
      machine: what its chip is called.
      topology: "16x16".
      hosts: machines.
      chips_per_host: of each.
      accelerator_type: "v5litepod-256".
    """

    machine: Machine
    topology: str
    hosts: int
    chips_per_host: int
    accelerator_type: str


def slice_of(topology: Topology, on: str = "gke") -> Slice:
    """The machines of one slice of a topology.

    Args:
      topology: chips of a slice.
      on: kind of cluster; XPK has no machines of eight chips, and names a slice by its shape.

    Raises:
      ConfigError: such a slice cannot be had.

    Example:
      >>> from llmasos_jax.plan.chips import parse_topology
      >>> made = slice_of(parse_topology("v5e:16x16"))
      >>> made.hosts, made.chips_per_host, made.accelerator_type
      (64, 4, 'v5litepod-256')
      >>> made = slice_of(parse_topology("v5e:2x4"), "xpk")
      >>> made.hosts, made.chips_per_host, made.accelerator_type
      (2, 4, 'v5litepod-2x4')
    """
    _check_shape(topology)
    machine = MACHINES[topology.chip.name]
    chips, shape = math.prod(topology.shape), "x".join(map(str, topology.shape))
    single = machine.xpk_single_host if on == "xpk" else machine.single_host
    per_host = chips if chips in single else _CHIPS_PER_HOST
    if chips <= _CHIPS_PER_HOST and chips not in single:
        raise ConfigError(
            f"topology {topology.chip.name}:{shape} is smaller than the slices of {on}; take a "
            "larger one, or --on=gke or tpu-vm"
        )
    # Several shapes may have as many chips: XPK is told the shape, the TPU API knows the number.
    size = shape if on == "xpk" else chips * machine.cores_counted
    name = f"{machine.accelerator}-{size}"
    return Slice(machine, shape, chips // per_host, per_host, name)


def _check_shape(topology: Topology) -> None:
    """Refuses a shape that no cloud sells, with the nearest that is."""
    shape = topology.shape
    if shape in _FLAT + _SMALL:
        return
    is_sorted = shape == tuple(sorted(shape))
    if len(shape) == 3 and is_sorted and all(size % 4 == 0 for size in shape):
        return
    known = ", ".join("x".join(map(str, s)) for s in (_FLAT if len(shape) == 2 else _SMALL))
    more = "" if len(shape) == 2 else ", or AxBxC of multiples of 4 with A <= B <= C"
    raise ConfigError(
        f"topology {topology.chip.name}:{'x'.join(map(str, shape))} cannot be had as a slice; take "
        f"one of {known}{more}"
    )
