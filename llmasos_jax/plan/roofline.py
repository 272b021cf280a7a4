"""The least time that a step can take, from what it does and what a chip can do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.figures import Figures


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step, if nothing else took time.

    Attributes:
      compute_s: matrix products and kernels at the chip's peak.
      memory_s: HBM traffic at its bandwidth; the traffic is an estimate.
      link_s: what the busiest axis of the torus carries, both directions of its links at once.
      network_s: what goes to other slices; 0 with one slice.
      cycles_s: the compiler's estimated cycles at the clock, kernels and collectives left out. Not
        in the bound: the compiler's estimates are careful ones, and a chip has been seen to be
        faster. None where the clock is not published, or nothing was compiled.
    """

    compute_s: float
    memory_s: float
    link_s: float
    network_s: float
    cycles_s: float | None

    @property
    def parts(self) -> dict[str, float]:
        """Those of which the largest is the bound."""
        return {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "links": self.link_s,
            "network": self.network_s,
        }

    @property
    def bound_s(self) -> float:
        """A lower bound of the step's time: all of them overlap, and nothing waits."""
        return max(self.parts.values())

    @property
    def bound_by(self) -> str:
        """Which of the parts that is."""
        return max(self.parts, key=lambda name: self.parts[name])


def roofline(figures: Figures, topology: Topology) -> Roofline | None:
    """The roofline of a step that was compiled; None where it was not.

    Compute is a lower bound as far as all kernels are known. Links: a ring along one axis of the
    torus uses two links of a chip, and a group that lies along several axes can use all of theirs.
    """
    work, chip = figures.work, topology.chip
    if work is None:
        return None
    narrow = chip.int8_flops or chip.flops
    wide = work.flops - work.narrow_flops + work.kernel_flops
    axes = [0.0] * max(3, len(topology.shape))
    for traffic in figures.traffic:
        # Two JAX devices of one chip share a place; what they send each other crosses no link.
        for axis in traffic.torus:
            inside = traffic.link_bytes - traffic.network_bytes
            axes[axis] += max(0.0, inside) / len(traffic.torus)
    return Roofline(
        compute_s=chip.devices * (wide / chip.flops + work.narrow_flops / narrow),
        memory_s=chip.devices * work.hbm_bytes / chip.memory_bytes_per_s,
        link_s=chip.devices * max(axes) / (2 * chip.link_bytes_per_s),
        network_s=chip.devices
        * sum(traffic.network_bytes for traffic in figures.traffic)
        / chip.network_bytes_per_s,
        cycles_s=None
        if work.cycles is None or chip.clock_hz is None
        else work.cycles / chip.clock_hz,
    )


@dataclass(frozen=True)
class Budget:
    """What a number of tokens takes at least.

    Attributes:
      tokens: to be read.
      steps: that read them.
      hours: at the lower bound of a step.
      chip_hours: of all chips.
    """

    tokens: int
    steps: int
    hours: float
    chip_hours: float


def budget(tokens: int, tokens_per_step: int, bound_s: float, num_chips: int) -> Budget:
    """Hours for `tokens`, none of them lost to anything but the step itself.

    Example:
      >>> budget(1_000_000, 1000, 3.6, 4)
      Budget(tokens=1000000, steps=1000, hours=1.0, chip_hours=4.0)
    """
    steps = math.ceil(tokens / tokens_per_step)
    hours = steps * bound_s / 3600
    return Budget(tokens, steps, hours, hours * num_chips)
