"""Which devices take part in a collective, and along which axes of the mesh they lie."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Devices:
    """The devices that a program was compiled for, in its own order.

    Attributes:
      axes: sizes of the mesh's axes, slowest first.
      slices: the slice of each device.
    """

    axes: Mapping[str, int]
    slices: tuple[int, ...] = ()

    def along(self, members: Sequence[int]) -> tuple[str, ...]:
        """The axes along which a group of devices lies."""
        if not self.axes or math.prod(self.axes.values()) <= max(members):
            return ()
        places = np.unravel_index(np.asarray(members), tuple(self.axes.values()))
        pairs = zip(self.axes, places, strict=True)
        return tuple(name for name, place in pairs if len(set(place.tolist())) > 1)

    def num_slices(self, members: Sequence[int]) -> int:
        """How many slices a group of devices is in."""
        return len({self.slices[m] for m in members}) if self.slices else 1


def members(attributes: str, num_devices: int) -> tuple[int, ...] | None:
    """Devices of the first group, in any of the forms in which XLA writes groups.

    Args:
      attributes: of the instruction.
      num_devices: that the program runs on.

    Returns:
      None where there is a form that is not known. Of a permutation None too: see `routes`.

    Example:
      >>> members("replica_groups=[2,4]<=[4,2]T(1,0), channel_id=1", 8)
      (0, 2, 4, 6)
    """
    found = re.search(r"replica_groups=(\{\{?[\d,]*\}?|\[[\d,]+\]<=\[|mesh\[)", attributes)
    if found is None:
        return None
    if found[1].startswith("{"):
        listed = re.findall(r"\d+", found[1])
        return tuple(map(int, listed)) or tuple(range(num_devices))
    if found[1].startswith("mesh"):
        return _of_mesh(attributes, num_devices)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    return tuple(_ids(tiled[3], tiled[4])[: int(tiled[2])].tolist()) if tiled else None


def _of_mesh(attributes: str, num_devices: int) -> tuple[int, ...] | None:
    found = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))?(?: \{([^}]*)\})?", attributes
    )
    if found is None:
        return None
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    chosen = re.findall(r"'([^']+)'", found[3] or "")
    total = math.prod(sizes.values())
    ids = np.arange(total)
    if found[2]:
        order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", found[2])
        if order is None:
            return None
        ids = _ids(order[1], order[2])
    if total > num_devices or ids.size != total or set(chosen) - set(sizes):
        return None
    grid = ids.reshape(tuple(sizes.values()))
    return tuple(grid[tuple(slice(None) if n in chosen else 0 for n in sizes)].ravel().tolist())


def _ids(sizes: str, order: str | None) -> np.ndarray:
    """`[4,2]T(1,0)`: counted in rows, read in another order of the axes."""
    shape = tuple(map(int, sizes.split(",")))
    grid = np.arange(math.prod(shape)).reshape(shape)
    return (grid.transpose(tuple(map(int, order.split(",")))) if order else grid).ravel()


def routes(attributes: str) -> tuple[tuple[int, int], ...]:
    """From and to, of a permutation.

    Example:
      >>> routes("source_target_pairs={{0,1},{1,0}}")
      ((0, 1), (1, 0))
    """
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1]) if found else []
    return tuple((int(a), int(b)) for a, b in pairs)
