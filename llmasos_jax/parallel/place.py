"""Puts trees of arrays where the rules say."""

from __future__ import annotations

import math
from typing import Any

import jax
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


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
