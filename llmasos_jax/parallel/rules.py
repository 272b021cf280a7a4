"""One frozen table: each logical axis goes to one mesh axis, to several, or to none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jax.sharding import Mesh, PartitionSpec

from llmasos_jax.errors import ConfigError, did_you_mean
from llmasos_jax.parallel.mesh import batch_axes, fsdp_axes, present, ways

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axis, a tuple of mesh axes, or None (replicated).

    Attributes:
      batch: sequences of a batch.
      sequence: tokens of a sequence.
      layers: of weights that are stacked over periods of layers.
      embed: the D side of a weight.
      expert_embed: the D side of an expert's weight.
      heads, kv_heads: query heads N and key/value heads K, of weights and activations.
      ffn: width F of the MLP, of weights and activations.
      vocab: V, of the embedding table and the logits.
      experts: E, of the experts' weights.
    """

    batch: MeshAxes = None
    sequence: MeshAxes = None
    layers: MeshAxes = None
    embed: MeshAxes = None
    expert_embed: MeshAxes = None
    heads: MeshAxes = None
    kv_heads: MeshAxes = None
    ffn: MeshAxes = None
    vocab: MeshAxes = None
    experts: MeshAxes = None

    def spec(self, *axes: str | None) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions have these names; None is replicated.

        Raises:
          ConfigError: an unknown name, or two dimensions that ask for the same mesh axis.

        Example:
          >>> tuple(Rules(batch=("data", "fsdp"), heads="tensor").spec("batch", None, "heads"))
          (('data', 'fsdp'), None, 'tensor')
        """
        spec, used = [], {}
        for axis in axes:
            mesh_axes = None if axis is None else self._lookup(axis)
            for name in (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ():
                if name in used:
                    raise ConfigError(
                        f'mesh axis "{name}" is wanted twice, by "{used[name]}" and "{axis}", in '
                        f"one array of axes {axes}; give one of them another mesh axis or None "
                        f"in {self}"
                    )
                used[name] = axis
            spec.append(mesh_axes)
        return PartitionSpec(*spec)

    def _lookup(self, axis: str) -> MeshAxes:
        names = [f.name for f in dataclasses.fields(self)]
        if axis not in names:
            raise ConfigError(f'no rule for logical axis "{axis}"{did_you_mean(axis, names)}')
        return getattr(self, axis)


def training_rules(mesh: Mesh, num_kv_heads: int | None = None) -> Rules:
    """Batch over its axes; weights over the FSDP axes by D, `tensor` by heads, F, V.

    Key heads of which `tensor` has a multiple (one, of multi-query attention) are not split: each
    device has all, and takes the one that its query heads read.

    Where a weight is not split by `context` and `expert` for another reason, they split its D as
    FSDP axes do: no device holds what another one has too, but for `data` (and outside of the
    layers `pipeline`).
    """
    fsdp, context = fsdp_axes(mesh), present(mesh, "context")
    tensor = ways(mesh, "tensor")
    is_shared = num_kv_heads is not None and num_kv_heads < tensor and tensor % num_kv_heads == 0
    return Rules(
        batch=batch_axes(mesh),
        sequence=_one(present(mesh, "context")),
        layers=_one(present(mesh, "pipeline")),
        embed=(*fsdp, *present(mesh, "expert"), *context),
        expert_embed=(*fsdp, *context),
        heads="tensor",
        kv_heads=None if is_shared else "tensor",
        ffn="tensor",
        vocab="tensor",
        experts=_one(present(mesh, "expert")),
    )


def serving_rules(mesh: Mesh, num_kv_heads: int | None = None) -> Rules:
    """As in training, but each replica holds its weights whole along D: no gathers at a token.

    Key heads that are not split have their cache whole on each device of `tensor`.
    """
    rules = training_rules(mesh, num_kv_heads)
    return dataclasses.replace(rules, embed=None, expert_embed=None)


def _one(names: tuple[str, ...]) -> MeshAxes:
    return names[0] if names else None
