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
      has_tpu_vm: whether it can be had as a TPU VM.
    """

    gke: str
    accelerator: str
    cores_counted: int
    single_host: tuple[int, ...]
    has_tpu_vm: bool = True


MACHINES = {
    "v4": Machine("tpu-v4-podslice", "v4", 2, (4,)),
    "v5e": Machine("tpu-v5-lite-podslice", "v5litepod", 1, (1, 4, 8)),
    "v5p": Machine("tpu-v5p-slice", "v5p", 2, (4,)),
    "v6e": Machine("tpu-v6e-slice", "v6e", 1, (1, 4, 8)),
    "tpu7x": Machine("tpu7x", "tpu7x", 2, (4,), has_tpu_vm=False),
}

_CHIPS_PER_HOST = 4  # of every slice of several machines


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


def slice_of(topology: Topology) -> Slice:
    """The machines of one slice of a topology.

    Raises:
      ConfigError: no number of whole machines makes it.

    Example:
      >>> from llmasos_jax.plan.chips import parse_topology
      >>> made = slice_of(parse_topology("v5e:16x16"))
      >>> made.hosts, made.chips_per_host, made.accelerator_type
      (64, 4, 'v5litepod-256')
    """
    machine = MACHINES[topology.chip.name]
    chips = math.prod(topology.shape)
    per_host = chips if chips in machine.single_host else _CHIPS_PER_HOST
    if chips % per_host:
        sizes = ", ".join(map(str, machine.single_host))
        raise ConfigError(
            f"topology {topology.chip.name}:{'x'.join(map(str, topology.shape))} has {chips} "
            f"chips; machines have {sizes} alone and {_CHIPS_PER_HOST} in a larger slice: take a "
            f"multiple of {_CHIPS_PER_HOST}"
        )
    return Slice(
        machine,
        "x".join(map(str, topology.shape)),
        chips // per_host,
        per_host,
        f"{machine.accelerator}-{chips * machine.cores_counted}",
    )
