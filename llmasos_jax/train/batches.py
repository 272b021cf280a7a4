"""Where a batch lives: its rows over the batch axes, the tokens of a row over `context`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import PartitionSpec

from llmasos_jax.data.batch import Batch
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.manual import Manual


def batch_specs(batch: Batch, token_fields: tuple[str, ...], manual: Manual) -> Batch:
    """The PartitionSpec of each array of a batch.

    Args:
      batch: arrays [B, ...] or their shapes.
      token_fields: those with an axis T after B, of `Objective.token_fields`.
      manual: the mesh and its rules.

    Raises:
      ConfigError: a name that no batch has, or arrays whose T is not that of the tokens.
    """
    known = [field.name for field in dataclasses.fields(Batch) if field.name != "extra"]
    for name in token_fields:
        if name not in known and not name.startswith("extra."):
            raise ConfigError(
                f'Objective.token_fields has "{name}", which no batch has; name some of {known}, '
                'or "extra.NAME"'
            )
    if manual.context == 1:
        return jax.tree.map(lambda _: manual.spec("batch"), batch)

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = ".".join(str(getattr(key, "name", getattr(key, "key", key))) for key in path)
        if name not in token_fields:
            return manual.spec("batch")
        if leaf.shape[1:2] != batch.tokens.shape[1:2] or leaf.shape[1] % manual.context:
            raise ConfigError(
                f"mesh.context={manual.context} cuts batch.{name} {tuple(leaf.shape)} along its "
                f"second axis, which has to be that of batch.tokens {tuple(batch.tokens.shape)} "
                "and a multiple of it; leave it out of Objective.token_fields, or change its length"
            )
        return manual.spec("batch", "sequence")

    return jax.tree_util.tree_map_with_path(spec, batch)
