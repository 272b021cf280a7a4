"""Fine-tuning runs of no step: random numbers where the run would have moved weights."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import build, default_config, to_dict, with_model
from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.evals.export.ours import Outputs, compiled
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.finetune.base import Base
from llmasos_jax.format.names import unflatten
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.adapters import adapters_of
from llmasos_jax.models.answers import answers
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.trained import is_trained, parted, together
from llmasos_jax.train.weights import map_named
from llmasos_jax.types import Tree

STEP = 7
# Compiling is most of the time here, and tiny programs need no optimising.
QUICK = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A run and its weights as it would compute with them, unmerged."""

    folder: Path
    config: Config
    definition: ModelDef
    params: Tree

    def outputs(self, probe: Probe) -> Outputs:
        run = answers_of(self.definition, self.params, probe)
        return {name: np.asarray(x) for name, x in run.items()}


def config_on(
    source: Path, classifier: Classifier | None = None, pooler: bool = False, **finetune: Any
) -> tuple[Config, Base]:
    given = default_config()
    given.finetune.base = str(source)
    given.data.sequence_length = 16
    for name, value in finetune.items():
        given.finetune[name] = value
    if classifier is not None:
        given.model.classifier.labels = classifier.labels
        given.model.classifier.level = classifier.level
        given.model.pooler = pooler
    files = open_model(source)
    base = Base(str(source), files, ByteTokenizer())
    config = build(with_model(given, files.manifest.parameters))
    tuned = dataclasses.replace(config.finetune, base_sha256=base.sha256)
    return dataclasses.replace(config, finetune=tuned), base


def tuned(folder: Path, source: Path, **options: Any) -> Tuned:
    """A run's folder with one checkpoint on the model at `source`."""
    config, base = config_on(source, **options)
    definition = ModelDef(config.model, scan_layout(config.model), adapters_of(config.finetune))
    moved, frozen = parted(definition.shapes, is_trained(config))
    rng = np.random.default_rng(1)

    def draw(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        around = 1.0 if path[-1] == "magnitude" else 0.0
        return jnp.asarray(rng.normal(around, 0.1, leaf.shape), leaf.dtype)

    state = {"params": map_named(draw, moved)}
    keeper = Checkpointer(folder / "checkpoints", every_steps=1, keep=1)
    keeper.save(STEP, state, {}, to_dict(config))
    keeper.close()
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), frozen
    )
    found, missing = base.read(definition, wanted)
    assert not missing
    return Tuned(folder, config, definition, together(state["params"], found))


def answers_of(definition: ModelDef, params: Tree, probe: Probe) -> dict[str, jax.Array]:
    """What a model computes of the probe; as one program, which compiles faster than its parts."""
    run = jax.jit(
        lambda *given: answers(definition, *given, Runtime(), reads_bt=None), compiler_options=QUICK
    )
    with jax.default_matmul_precision("highest"):
        return run(params, probe.tokens_bt, probe.mask_bt)


@functools.cache
def _merged(cfg: ModelConfig) -> Any:
    return compiled.__wrapped__(cfg, compiler_options=QUICK)


def outputs_of(files: ModelFiles, probe: Probe) -> Outputs:
    """What an opened model answers."""
    named: Mapping[str, np.ndarray] = {
        name: tensor.read().astype(np.float32) for name, tensor in files.tensors.items()
    }
    with jax.default_matmul_precision("highest"):
        run = _merged(files.manifest.parameters)
        out = run(unflatten(named), probe.tokens_bt, probe.mask_bt, probe.types_bt, None)
    return {name: np.asarray(x) for name, x in out.items()}


def probe_for(cfg: ModelConfig, seed: int = 0) -> Probe:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, cfg.vocab_size, (2, 11)).astype(np.int32)
    return Probe(tokens, np.ones_like(tokens))
