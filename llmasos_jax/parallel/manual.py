"""The one mode of sharding: all axes manual but `tensor`, which is left to the compiler.

`loss` runs inside one `shard_map` that is manual over all axes but `tensor`. Each weight arrives
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
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from llmasos_jax.parallel.mesh import batch_axes, platform, present, ways
from llmasos_jax.parallel.place import Axes
from llmasos_jax.parallel.rules import MeshAxes, Rules


@dataclass(frozen=True)
class Manual:
    """What model code needs inside the manual region: gather weights, place activations, sum.

    Attributes:
      mesh: the devices.
      rules: which logical axis goes to which of the mesh's.
      exchange: how attention sees the tokens of other devices, of `MeshConfig.context_exchange`.
    """

    mesh: Mesh
    rules: Rules
    exchange: str = "all_to_all"

    @property
    def axis_names(self) -> frozenset[str]:
        """The mesh axes that are manual."""
        return frozenset(self._summed)

    @property
    def _summed(self) -> tuple[str, ...]:
        """The axes over which devices have other tokens, so that sums over tokens go over them."""
        return (*batch_axes(self.mesh), *present(self.mesh, "context"))

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
        if early and w.dtype == jnp.float32 and dtype == jnp.bfloat16:
            w = _rounded(w)
        w = w.astype(dtype if early else jnp.float32)

        def along_each_axis(w: jax.Array) -> jax.Array:
            for dim, entry in enumerate(self.spec(*axes)):
                # Experts stay where they are: tokens go to them.
                names = () if axes[dim] == "experts" else _names(entry)
                for name in reversed(self._cut(names)):
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
        """Sums a gradient over the manual axes over which it is not cut, by `gather` or else."""
        split = {name for entry in self.spec(*axes) for name in _names(entry)}
        left = tuple(name for name in self._cut(self._summed) if name not in split)
        return lax.psum(grad, left) if left else grad

    def sum(self, value: Any) -> Any:
        """Sums a tree of scalars over all devices that have other tokens."""
        names = self._cut(self._summed)
        return lax.psum(value, names) if names else value

    def first_row(self, num_rows: int) -> jax.Array:
        """The global number of this device's first row, when each device holds `num_rows`."""
        return lax.axis_index(batch_axes(self.mesh)) * num_rows

    def whole_rows(self, x: jax.Array) -> jax.Array:
        """[B, ...] of the whole batch, from this device's rows of it; in the order of the batch."""
        names = self._cut(batch_axes(self.mesh))
        return lax.all_gather(x, names, axis=0, tiled=True) if names else x

    @property
    def context(self) -> int:
        """Into how many parts the tokens of a sequence are split."""
        return ways(self.mesh, "context")

    def first_token(self, num_tokens: int) -> jax.Array | int:
        """The place in the sequence of this device's first token, when each holds `num_tokens`."""
        return lax.axis_index("context") * num_tokens if self.context > 1 else 0

    def whole_tokens(self, x: jax.Array) -> jax.Array:
        """[B, T, ...] of whole sequences from this device's tokens of them."""
        return lax.all_gather(x, "context", axis=1, tiled=True) if self.context > 1 else x

    def own_tokens(self, x: jax.Array) -> jax.Array:
        """The inverse of `whole_tokens`."""
        if self.context == 1:
            return x
        num = x.shape[1] // self.context
        return lax.dynamic_slice_in_dim(x, self.first_token(num), num, axis=1)

    def shard_map(self, fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`fn` with all axes manual but `tensor`.

        Inside of a region that is manual over an axis that is none of this mesh (replicas of a
        sweep), the axes are found by their names in the mesh of that region.
        """
        outer = jax.sharding.get_abstract_mesh()
        # check_vma=False: the sums over replicated weights are written out above.
        return jax.shard_map(
            fn,
            mesh=None if outer.manual_axes else self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axis_names),
            check_vma=False,
        )

    @property
    def ways(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return ways(self.mesh, *batch_axes(self.mesh))

    @property
    def gathers(self) -> bool:
        """Whether weights are split, so that a whole one is there only while it is used."""
        return bool(self._cut(_names(self.rules.embed)))

    def _cut(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those axes that have more than one device: over the others nothing is to be done."""
        return tuple(name for name in names if self.mesh.shape[name] > 1)

    @property
    def _left_names(self) -> frozenset[str]:
        return frozenset(map(str, self.mesh.axis_names)) - self.axis_names

    def _left(self, *axes: str | None) -> PartitionSpec:
        """As `spec`, with only the mesh axes that are left to the compiler."""
        return PartitionSpec(*(_keep(entry, self._left_names) for entry in self.rules.spec(*axes)))


@jax.custom_vjp
def _rounded(w: jax.Array) -> jax.Array:
    """`w` with bfloat16's bits in float32; its gradient passes as it is.

    The compiler moves a plain cast of a layer's weights out of the loop over layers, and then holds
    all weights of the model in both types; this it leaves where it is.
    """
    return lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)


_rounded.defvjp(lambda w: (_rounded(w), None), lambda _, grad: (grad,))


def _names(entry: MeshAxes) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _keep(entry: MeshAxes, names: frozenset[str]) -> MeshAxes:
    if isinstance(entry, tuple):
        kept = tuple(name for name in entry if name in names)
        return kept[0] if len(kept) == 1 else kept or None
    return entry if entry in names else None
