"""What a TPU chip is and can do: one table.

Figures are those of the vendor's public pages, cloud.google.com/tpu/docs/v5e and its neighbours,
read in November 2026. Peaks are upper bounds that no program reaches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmasos_jax.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: as in a topology, "v5e" of "v5e:16x16".
      program_gib: of HBM, what the compiler leaves to a program of one device.
      most: chips of one slice at most.
      flops: bfloat16 operations per second.
      int8_flops: 8-bit operations per second (int8; fp8 on tpu7x). None where 8 bits are no faster.
      memory_bytes_per_s: of HBM.
      link_bytes_per_s: of one link to a neighbour, in one direction.
      axes: of the torus; a chip has two links along each.
      network_bytes_per_s: of a chip's share of its host's network, between slices.
      devices: that JAX sees in one chip.
      config: what libtpu calls the use of the chip's cores: on v4 and v5p two work as one device.
      wraps: a torus axis of so many chips, or of a multiple of it, is closed to a ring.
      clock_hz: of the matrix units; None where it is not published.
    """

    name: str
    program_gib: float
    most: int
    flops: float
    int8_flops: float | None
    memory_bytes_per_s: float
    link_bytes_per_s: float
    axes: int
    network_bytes_per_s: float
    devices: int = 1
    config: str = "default"
    wraps: int = 4
    clock_hz: float | None = None

    @property
    def program_bytes(self) -> int:
        """Of one device, for a program."""
        return int(self.program_gib * 2**30)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            *("v4", 30.75, 4096, 275e12, None, 1228e9, 50e9, 3, 6.25e9),
            config="megacore",
            clock_hz=1.05e9,
        ),
        Chip(
            *("v5e", 15.75, 256, 197e12, 393e12, 819e9, 50e9, 2, 3.125e9),
            wraps=16,
            clock_hz=1.5e9,
        ),
        Chip(
            *("v5p", 95.74, 8960, 459e12, 918e12, 2765e9, 100e9, 3, 6.25e9),
            config="megacore",
            clock_hz=1.75e9,
        ),
        Chip(*("v6e", 31.25, 256, 918e12, 1836e12, 1638e9, 100e9, 2, 12.5e9), wraps=16),
        Chip(*("tpu7x", 94.75, 9216, 2307e12, 4614e12, 7380e9, 100e9, 3, 12.5e9), devices=2),
    )
}


@dataclass(frozen=True)
class Topology:
    """Chips of one kind on a torus.

    Attributes:
      chip: what each of them is.
      shape: chips along each axis.
      slices: such tori, joined by the network of the data centre.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        total = self.slices
        for size in self.shape:
            total *= size
        return total

    @property
    def num_devices(self) -> int:
        """That JAX sees on all slices."""
        return self.num_chips * self.chip.devices

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which axes are rings, as `topologies.get_topology_desc` takes it.

        Smaller slices of a pod are cut out of it, so their ends are not joined.
        """
        rings = [size % self.chip.wraps == 0 for size in self.shape]
        closed = rings if self.chip.axes == 2 else [all(rings)] * 3
        first, second, third = (*closed, False)[:3]
        return first, second, third

    def __str__(self) -> str:
        slices = f" x {self.slices} slices" if self.slices > 1 else ""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}{slices}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads "v5e:16x16".

    Raises:
      ConfigError: not of that form, an unknown chip, or as many axes as the chip's torus has not.

    Example:
      >>> parse_topology("v5p:4x4x4").num_chips
      64
    """
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", text)
    if found is None:
        raise ConfigError(
            f'topology "{text}" is not of the form chip:AxB or chip:AxBxC (v5e:16x16)'
        )
    if found[1] not in CHIPS:
        hint = did_you_mean(found[1], list(CHIPS))
        raise ConfigError(f'topology "{text}": no chip is named "{found[1]}"{hint}')
    chip, shape = CHIPS[found[1]], tuple(map(int, found[2].split("x")))
    if min(shape) < 1:
        raise ConfigError(f'topology "{text}": each axis has at least one chip')
    if len(shape) != chip.axes:
        like = "x".join("4" * chip.axes)
        raise ConfigError(
            f'topology "{text}": a {chip.name} pod is a torus of {chip.axes} axes, as in '
            f"{chip.name}:{like}"
        )
    if slices < 1:
        raise ConfigError(f"slices={slices} must be at least 1")
    return Topology(chip, shape, slices)


def shapes_of(chip: Chip) -> str:
    """Which shapes a slice of a chip may have, in words.

    Example:
      >>> shapes_of(CHIPS["v5e"])
      'a v5e slice is 1x1, 1x2, or two even numbers of at most 256 chips: 2x2, 2x4, 4x4, 16x16'
    """
    if chip.axes == 2:
        some = "1x1, 1x2, or two even numbers"
        like = "2x2, 2x4, 4x4, 16x16"
    else:
        some = "1x1x1, 1x2x1, or two even numbers and any third,"
        like = "2x2x1, 2x2x4, 4x4x4, 8x8x8"
    return f"a {chip.name} slice is {some} of at most {chip.most} chips: {like}"


def require_shape(topology: Topology) -> None:
    """Refuses a shape that no slice has.

    Raises:
      ConfigError: hosts of 2 x 2 chips do not make it, or it is larger than a pod.
    """
    shape, chip = topology.shape, topology.chip
    chips = topology.num_chips // topology.slices
    if chips <= 2 and max(shape[:2]) == chips:
        return
    if shape[0] % 2 or shape[1] % 2:
        raise ConfigError(f'topology "{topology}": {shapes_of(chip)}')
    if chips > chip.most:
        raise ConfigError(
            f'topology "{topology}" has {chips:,} chips: {shapes_of(chip)}; --slices=N joins more'
        )
