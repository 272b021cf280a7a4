"""Puts trees of arrays where the rules say."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.rules import Rules
from llmasos_jax.types import Tree

Axes = tuple[str | None, ...]


def is_axes(node: Any) -> bool:
    """Whether a node of a tree of logical axes is a leaf."""
    return isinstance(node, tuple)


def shardings(axes: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """The tree of NamedShardings of a tree of logical axes."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, rules.spec(*leaf)), axes, is_leaf=is_axes)


def check_divisible(shapes: Tree, axes: Tree, mesh: Mesh, rules: Rules) -> None:
    """Raises ConfigError for the first array that the mesh does not cut into equal parts.

    Args:
      shapes: tree of arrays or ShapeDtypeStructs.
      axes: the same tree of logical axes.
      mesh: the devices.
      rules: from logical to mesh axes.
    """

    def check(path: tuple, leaf: Any, names: Axes) -> None:
        for size, name, mesh_axes in zip(leaf.shape, names, rules.spec(*names), strict=True):
            ways = mesh_ways(mesh, mesh_axes)
            if size % ways:
                where = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ConfigError(
                    f'{where}: axis "{name}" has size {size}, which mesh axis {mesh_axes!r} does '
                    f"not cut into {ways} equal parts; make that mesh axis a divisor of {size}, or "
                    f"change the model so that {size} becomes a multiple of {ways}"
                )

    jax.tree_util.tree_map_with_path(check, shapes, axes)


def mesh_ways(mesh: Mesh, mesh_axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts these mesh axes cut a dimension."""
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    return math.prod(mesh.shape[name] for name in names)


def own_rows(
    sharding: NamedSharding, num_rows: int, devices: Collection[Any] | None = None
) -> tuple[int, ...]:
    """The rows of a global array that some devices hold, in order.

    Two processes hold the same ones where an axis that does not cut rows (`tensor`, say) goes over
    both.

    Args:
      sharding: of an array whose first axis is the rows'.
      num_rows: over all processes.
      devices: of the mesh; None takes this process's.

    Example:
      >>> from llmasos_jax.parallel.mesh import single_device_mesh
      >>> own_rows(NamedSharding(single_device_mesh(), PartitionSpec("data")), 3)
      (0, 1, 2)
    """
    places = _of_rows(sharding).devices_indices_map((num_rows,))
    chosen = sharding.addressable_devices if devices is None else devices
    held = {row for device in chosen for row in range(num_rows)[places[device][0]]}
    return tuple(sorted(held))


def put_rows(rows: np.ndarray, sharding: NamedSharding, num_rows: int) -> jax.Array:
    """Makes a global array of the rows that each process holds.

    Args:
      rows: those of `own_rows`, in that order, with all that follows the first axis.
      sharding: of the global array; its first axis cuts rows.
      num_rows: over all processes; one process has them all.

    Raises:
      ValueError: as many rows as this process does not hold.
    """
    if jax.process_count() == 1:
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
    held = own_rows(sharding, num_rows)
    if len(held) != len(rows):
        raise ValueError(f"{len(rows)} rows, this process holds {len(held)} of {num_rows}")
    place = {row: number for number, row in enumerate(held)}

    def part(index: Any) -> np.ndarray:  # a slice for each axis
        numbers = [place[row] for row in range(num_rows)[index[0]]]
        return rows[(numbers, *index[1:])]

    return jax.make_array_from_callback((num_rows, *rows.shape[1:]), sharding, part)


def _of_rows(sharding: NamedSharding) -> NamedSharding:
    """What a sharding does to the first axis."""
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
