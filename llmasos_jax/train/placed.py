"""A model on the devices of a run: its structure, where its weights live, how it computes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.adapters import adapters_of
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.models.pipeline import stage_schedule
from llmasos_jax.nn.context import check_context
from llmasos_jax.nn.kernels import kernels_for
from llmasos_jax.nn.runtime import Runtime, training_runtime
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import platform
from llmasos_jax.parallel.place import check_divisible
from llmasos_jax.parallel.rules import training_rules
from llmasos_jax.types import Tree


@dataclass(frozen=True)
class Teacher:
    """What a loss asks of the model that is imitated.

    Attributes:
      model: a bound Transformer.
      runtime: how it runs, which may not be how the run's own model does.
    """

    model: Any
    runtime: Runtime


@dataclass(frozen=True)
class Placed:
    """A model on a mesh.

    Attributes:
      definition: its structure, adapters beside its products.
      manual: the mesh, and which of its axes cuts what of this model.
      runtime: how it runs in the step.
    """

    definition: ModelDef
    manual: Manual
    runtime: Runtime

    def bound(self, params: Tree) -> Teacher:
        """The model with these weights, which are not differentiated."""
        return Teacher(self.definition.bind(params), self.runtime)


def specs_of(definition: ModelDef, manual: Manual) -> Tree:
    """The PartitionSpecs of a model's weights in the manual region."""
    return jax.tree.map(
        lambda axes: manual.spec(*axes),
        definition.axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def placed_model(cfg: Config, mesh: Mesh) -> Placed:
    """The model of a config.

    Raises:
      ConfigError: the mesh does not cut a weight into equal parts, or splits tokens or layers where
        that is not computed.
    """
    manual = Manual(mesh, training_rules(mesh, cfg.model.kv_heads), cfg.mesh.context_exchange)
    kernels_for(platform(mesh), cfg.kernels.attention)
    check_context(cfg, manual)
    definition = ModelDef(cfg.model, scan_layout(cfg.model), adapters_of(cfg.finetune))
    schedule = stage_schedule(cfg, mesh, definition.layout)
    check_divisible(definition.shapes, definition.axes, mesh, manual.rules)
    runtime = training_runtime(
        cfg.precision,
        platform(mesh),
        remat=cfg.train.remat,
        remat_save=cfg.train.remat_save,
        remat_offload=cfg.train.remat_offload,
        manual=manual,
        kernels=cfg.kernels,
    )
    return Placed(definition, manual, dataclasses.replace(runtime, schedule=schedule))


def placed_teacher(cfg: Config, mesh: Mesh, model: ModelConfig) -> Placed:
    """The model that `finetune.teacher` names, on the devices of the run.

    It computes in `precision.dtype`, with no product of eight bits; there is no backward pass of
    it, so `train.remat` is of no matter.

    Args:
      cfg: the run.
      mesh: its devices.
      model: the teacher's parameters.

    Raises:
      ConfigError: it does not predict each token from those before it, reads less than a row, or
        does not fit the mesh.
    """
    name = f'finetune.teacher="{cfg.finetune.teacher}"'
    length = cfg.data.sequence_length
    wrong = {
        "an encoder": not model.causal,
        "an encoder-decoder": model.encoder.num_layers > 0,
        "a model that reads prompts in both directions": model.prefix_lm,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise ConfigError(
                f"{name} is {what}, and a teacher predicts each token from those before it; give a "
                "decoder"
            )
    if model.context_length < length:
        raise ConfigError(
            f"{name} reads {model.context_length} tokens, and data.sequence_length={length}; lower "
            "that"
        )
    alone = dataclasses.replace(
        cfg,
        model=model,
        finetune=FinetuneConfig(),
        precision=dataclasses.replace(cfg.precision, quantize=None),
        train=dataclasses.replace(
            cfg.train, remat="none", remat_save=(), remat_offload=(), expert_capacity=None
        ),
    )
    try:
        return placed_model(alone, mesh)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
