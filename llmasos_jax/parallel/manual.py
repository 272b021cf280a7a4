"""The one mode of sharding: batch axes manual, `tensor` left to the compiler.

`loss` runs inside one `shard_map` that is manual over `data` and the FSDP axes. Each weight arrives
as its shard and is gathered where it is used, one FSDP axis after the other; the transpose of that
gather is a reduce-scatter, so gradients come back as shards with no all-reduce (Rajbhandari et al.,
2020, arXiv 1910.02054, stage 3). What a device does not split is summed by hand. `docs/sharding.md`
has what was compiled before this was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from llmasos_jax.parallel.mesh import batch_axes, fsdp_axes, platform
from llmasos_jax.parallel.place import Axes
from llmasos_jax.parallel.rules import MeshAxes, Rules


@dataclass(frozen=True)
class Manual:
    """What model code needs inside the manual region: gather weights, place activations, sum."""

    mesh: Mesh
    rules: Rules

    @property
    def axis_names(self) -> frozenset[str]:
        """The mesh axes that are manual."""
        return frozenset(batch_axes(self.mesh))

    def spec(self, *axes: str | None) -> PartitionSpec:
        """As `Rules.spec`, with only the manual mesh axes: what `shard_map` wants."""
        return PartitionSpec(*(_keep(entry, self.axis_names) for entry in self.rules.spec(*axes)))

    def place(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Constrains an activation along the mesh axes that the compiler handles."""
        return lax.with_sharding_constraint(x, self._left(*axes))

    def gather(self, w: jax.Array, axes: Axes, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The whole weight in `dtype` from this device's shard of it."""
        # XLA for CPU aborts on a bfloat16 reduce-scatter, the transpose of this gather: cast after
        # it, at twice the bytes.
        early = platform(self.mesh) != "cpu"
        w = w.astype(dtype) if early else w

        def along_each_axis(w: jax.Array) -> jax.Array:
            for dim, entry in enumerate(self.spec(*axes)):
                for name in reversed(self._cut(_names(entry))):
                    w = lax.all_gather(w, name, axis=dim, tiled=True)
            return w

        left = self._left(*axes)
        if any(self._cut(_names(entry)) for entry in left):
            # Were `tensor` left to the compiler here, it would gather the weight over that axis
            # first, then whole weights over the others, and gradients likewise. Manual over all,
            # each device gathers its own part.
            along_each_axis = jax.shard_map(
                along_each_axis,
                in_specs=left,
                out_specs=left,
                axis_names=set(self._left_names),
                check_vma=False,
            )
        return along_each_axis(w).astype(dtype)

    def sum_gradient(self, grad: jax.Array, axes: Axes) -> jax.Array:
        """Sums a gradient over the batch axes over which `gather` has not already scattered it."""
        split = {name for entry in self.spec(*axes) for name in _names(entry)}
        left = tuple(name for name in self._cut(batch_axes(self.mesh)) if name not in split)
        return lax.psum(grad, left) if left else grad

    def sum(self, value: Any) -> Any:
        """Sums a tree of scalars over the batch axes."""
        names = self._cut(batch_axes(self.mesh))
        return lax.psum(value, names) if names else value

    def first_row(self, num_rows: int) -> jax.Array:
        """The global number of this device's first row, when each device holds `num_rows`."""
        return lax.axis_index(batch_axes(self.mesh)) * num_rows

    def shard_map(self, fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`fn` with the batch axes manual."""
        # check_vma=False: the sums over replicated weights are written out above.
        return jax.shard_map(
            fn,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axis_names),
            check_vma=False,
        )

    @property
    def ways(self) -> int:
        """How many devices split the batch."""
        ways = self.mesh.shape["data"]
        for name in fsdp_axes(self.mesh):
            ways *= self.mesh.shape[name]
        return ways

    @property
    def gathers(self) -> bool:
        """Whether weights are split, so that a whole one is there only while it is used."""
        return bool(self._cut(fsdp_axes(self.mesh)))

    def _cut(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those axes that have more than one device: over the others nothing is to be done."""
        return tuple(name for name in names if self.mesh.shape[name] > 1)

    @property
    def _left_names(self) -> frozenset[str]:
        return frozenset(map(str, self.mesh.axis_names)) - self.axis_names

    def _left(self, *axes: str | None) -> PartitionSpec:
        """As `spec`, with only the mesh axes that are left to the compiler."""
        return PartitionSpec(*(_keep(entry, self._left_names) for entry in self.rules.spec(*axes)))


def _names(entry: MeshAxes) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _keep(entry: MeshAxes, names: frozenset[str]) -> MeshAxes:
    if isinstance(entry, tuple):
        kept = tuple(name for name in entry if name in names)
        return kept[0] if len(kept) == 1 else kept or None
    return entry if entry in names else None
