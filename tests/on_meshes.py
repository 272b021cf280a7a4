"""Small models on meshes of eight fake devices: loss and gradients beside those of one device."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tolerances import SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
)
from llmasos_jax.data.batch import Batch
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import Trainer, make_trainer

B, T, V = 16, 16, 64
# Compiling is most of the time here, and tiny programs need no optimising.
QUICK = {"xla_backend_optimization_level": 0}
ONE = MeshConfig(data=1)
MIXED = MeshConfig(data=2, fsdp=(2,), tensor=2)
SMALL = ModelConfig(V, 32, 2, context_length=T, num_heads=4, ffn_dim=32)
# Whatever a decoder may have beside its sizes.
OPTIONS = SMALL.replace(
    num_kv_heads=2,
    attention_soft_cap=20.0,
    qk_norm="head",
    qkv_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
    norm="layernorm",
    logit_soft_cap=30.0,
)
BERT = SMALL.replace(
    causal=False,
    norm="layernorm",
    norm_placement="post",
    final_norm=False,
    embedding_norm=True,
    token_types=2,
    position="learned",
    mlp="gelu",
    head="mlm",
    pooler=True,
    next_sentence=True,
)
CAUSAL = ObjectiveConfig(z_loss=1e-3, router_balance=0.3, router_z=0.1)


def config(
    model: ModelConfig = SMALL,
    mesh: MeshConfig = ONE,
    *,
    objective: ObjectiveConfig = CAUSAL,
    optim: OptimConfig | None = None,
    sequence_length: int = T,
    **train: Any,
) -> Config:
    """A run of ten steps; `train` are fields of `TrainConfig`, or of `Config` itself."""
    own = {name: train.pop(name) for name in ("precision", "kernels") if name in train}
    return Config(
        model=model,
        data=DataConfig(sequence_length=sequence_length),
        objective=objective,
        # With the default eps Adam makes whole steps of gradients that are rounding alone.
        optim=optim or OptimConfig(warmup_steps=0, learning_rate=1e-2, eps=1e-6),
        train=TrainConfig(**{"batch_size": B, "dropout_rate": 0.1, "steps": 10, **train}),
        mesh=mesh,
        **own,
    )


def mesh_of(cfg: MeshConfig) -> Mesh:
    """A mesh over as many of the devices as it asks for."""
    sizes = (cfg.data or 1, *cfg.fsdp, cfg.pipeline, cfg.expert, cfg.context, cfg.tensor)
    devices = jax.devices()
    return make_mesh(cfg, devices if cfg.preset else devices[: math.prod(sizes)])


def trainer_of(cfg: Config, *, is_scanned: bool = True) -> Trainer:
    """What trains it; scanned layers compile faster than ones that are written out, as on a CPU."""
    trainer = make_trainer(cfg, mesh_of(cfg.mesh))
    if not is_scanned:
        return trainer
    runtime = dataclasses.replace(trainer.runtime, max_unrolled=1)
    return dataclasses.replace(trainer, runtime=runtime)


@functools.cache
def batch(kind: str = "causal", step: int = 0, size: int = B) -> Batch:
    """Rows with several documents, padding, and weights that differ; whole rows weigh nothing.

    Documents cross the borders between devices. Of "mlm_nsp", three places of a row are predicted,
    which no number of devices divides, and the last row only fills up the batch.
    """
    rng = np.random.default_rng(step)
    draw = lambda *shape: rng.integers(0, V, shape).astype(np.int32)
    tokens = draw(size, T + 1)
    segments = np.sort(rng.integers(1, 4, (size, T)), axis=1).astype(np.int32)
    segments[:, -2:] = 0
    positions = np.tile(np.arange(T, dtype=np.int32), (size, 1))
    weights = rng.random((size, T)).astype(np.float32) * (rng.random((size, 1)) > 0.4)
    weights, targets, extra = weights * (segments > 0), tokens[:, 1:], {}
    if kind == "prefix_lm":
        extra = {"prefix": (positions < 6).astype(np.int32)}
    if kind == "mlm_nsp":
        segments = (segments > 0).astype(np.int32)
        segments[-1] = 0
        targets, weights = draw(size, 3), rng.random((size, 3)).astype(np.float32)
        weights[0, 2] = weights[-1] = 0
        extra = {
            "masked_positions": rng.integers(0, T - 2, (size, 3)).astype(np.int32),
            "token_types": (positions > 6).astype(np.int32) * segments,
            "next_sentence": rng.integers(0, 2, size).astype(np.int32),
        }
    weights[4:6] = 0
    weights = weights.astype(np.float32)
    return Batch(tokens[:, :-1], targets, weights, segments, positions, extra)


def rows_of(cfg: Config) -> Batch:
    """The batch of a run's objective."""
    return batch(cfg.objective.name, size=cfg.train.batch_size)


@functools.cache
def params(model: ModelConfig):
    """Weights with no two alike and none zero, biases and scales included."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3
    return jax.tree.map(draw, ModelDef(model, scan_layout(model)).shapes)


def loss_and_grad(cfg: Config, rows: Callable[[Config], Batch] = rows_of):
    """The sums of the loss and the gradients, on the host; each lay where its weight lies."""
    trainer = trainer_of(cfg)
    weights = jax.device_put(params(cfg.model), trainer.state_shardings.params)
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    sums, grads = run(weights, trainer.put(rows(cfg)), jax.random.key(3))
    assert_placed(grads, trainer.state_shardings.params)
    return jax.device_get(sums), jax.device_get(grads)


@functools.cache
def _on_one(cfg: Config, rows: Callable[[Config], Batch]):
    return loss_and_grad(cfg, rows)


def expected(cfg: Config, rows: Callable[[Config], Batch] = rows_of):
    """The same of one device that keeps all activations, whatever `cfg` has."""
    train = dataclasses.replace(cfg.train, remat="none")
    return _on_one(dataclasses.replace(cfg, mesh=ONE, train=train), rows)


def assert_mesh_is_one_device(cfg: Config, rows: Callable[[Config], Batch] = rows_of):
    """Asserts that the loss and the gradients are one device's, and that each weight has one.

    Returns:
      The sums of the loss.
    """
    (sums, grads), (wanted_sums, wanted) = loss_and_grad(cfg, rows), expected(cfg, rows)
    assert_same(sums, wanted_sums)
    assert_same(grads, wanted)
    for path, grad in jax.tree_util.tree_leaves_with_path(wanted):
        assert np.abs(grad).max() > 1e-4 or "router_bias" in str(path), path
    return sums


def errors(found, wanted, whole: float = 0.0) -> dict[str, float]:
    """The error of each leaf relative to its norm: one must not hide behind large ones.

    A leaf that is zero but for rounding (the bias of keys, to which a softmax is blind), below 1e-5
    of `whole`, is compared with that.
    """
    result = {}
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        norm = np.linalg.norm(b)
        scale = norm if norm > 1e-5 * whole else whole
        result[jax.tree_util.keystr(path)] = float(np.linalg.norm(a - b) / max(scale, 1e-30))
    return result


def assert_same(found, wanted, tolerance: float = SIMPLE) -> None:
    """Asserts that no leaf has a larger error."""
    wrong = {name: e for name, e in errors(found, wanted).items() if not e <= tolerance}
    assert not wrong


def assert_placed(arrays, shardings) -> None:
    """Asserts that each array lies where its sharding says."""
    for array, sharding in zip(jax.tree.leaves(arrays), jax.tree.leaves(shardings), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
        assert array.addressable_shards[0].data.shape == sharding.shard_shape(array.shape)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Three steps of training, as a user's run takes them.

    Attributes:
      trainer, compiled: what took them.
      first: the weights before, on the host.
      state: after.
      metrics: of each step, on the host.
    """

    trainer: Trainer
    compiled: jax.stages.Compiled
    first: Any
    state: Any
    metrics: list


@functools.cache
def three_steps(cfg: Config) -> Trained:
    """Trains on one batch; layers are in whichever form training has them."""
    trainer = trainer_of(cfg, is_scanned=False)
    state, metrics = trainer.init(jax.random.key(7)), []
    assert_placed(state, trainer.state_shardings)
    first = jax.device_get(state.params)
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    compiled = lowered.compile(compiler_options=QUICK)
    for _ in range(3):
        state, step_metrics = compiled(state, trainer.put(rows_of(cfg)))
        metrics.append(jax.device_get(step_metrics))
    assert_placed(state, trainer.state_shardings)
    assert int(state.step) == 3
    return Trained(trainer, compiled, first, state, metrics)


def assert_training_is_one_devices(cfg: Config) -> Trained:
    """Asserts that weights and metrics of three steps are one device's, and that it learns."""
    found, wanted = three_steps(cfg), three_steps(dataclasses.replace(cfg, mesh=ONE))
    jax.tree.map(np.testing.assert_array_equal, found.first, wanted.first)
    assert found.metrics[2].loss < found.metrics[0].loss - 0.1
    assert_same(found.metrics, wanted.metrics)
    assert_same(jax.device_get(found.state.params), jax.device_get(wanted.state.params))
    return found
