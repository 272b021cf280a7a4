"""Training of encoder-decoders and prefix models: the same numbers on every mesh."""

import functools

import jax
import numpy as np
import pytest
from test_sharding import QUICK, assert_same
from tolerances import SIMPLE

from llmasos_jax.config.heads import Encoder
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
from llmasos_jax.models.definition import ModelDef, relayout
from llmasos_jax.models.layout import unrolled_layout
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import Trainer, make_trainer
from llmasos_jax.train.weights import decay_mask, is_in_block, is_stacked, map_named

B, S, T, V = 16, 12, 8, 64
ONE = MeshConfig(data=1)
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=(8,)),
    "fsdp 2x4": MeshConfig(fsdp=(2, 4)),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=(2,), tensor=2),
}
RELATIVE = {"position": "relative", "relative_buckets": 8, "relative_max_distance": 16}
T5 = ModelConfig(
    V, 32, 3, context_length=16, num_heads=4, num_kv_heads=2, ffn_dim=32, mlp="relu", **RELATIVE
).replace(encoder=Encoder(2), attention_windows=(3, 3, None), attention_scale=1.0)
MODELS = {
    "t5": ("span_corruption", T5),
    "prefix": ("prefix_lm", T5.replace(encoder=Encoder(), prefix_lm=True)),
}


def trainer_for(model: str, mesh: MeshConfig, **train: object) -> Trainer:
    objective, cfg = MODELS[model]
    settings = {"batch_size": B, "dropout_rate": 0.1, "steps": 10} | train
    config = Config(
        model=cfg,
        data=DataConfig(sequence_length=T),
        objective=ObjectiveConfig(name=objective, z_loss=1e-3),
        optim=OptimConfig(warmup_steps=0, learning_rate=1e-2),
        train=TrainConfig(**settings),
        mesh=mesh,
    )
    num_devices = (mesh.data or 1) * int(np.prod(mesh.fsdp)) * mesh.tensor
    return make_trainer(config, make_mesh(mesh, jax.devices()[:num_devices]))


@functools.cache
def batch(model: str) -> Batch:
    """Rows of two texts and padding; the encoder's rows have another length than the decoder's."""
    rng = np.random.default_rng(0)

    def rows(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segments = np.sort(rng.integers(1, 3, (B, length)), axis=1).astype(np.int32)
        segments[:, -2:] = 0
        positions = np.tile(np.arange(length, dtype=np.int32), (B, 1))
        return rng.integers(0, V, (B, length)).astype(np.int32), segments, positions

    (tokens, segments, positions), (read, read_segments, read_positions) = rows(T), rows(S)
    weights = (rng.random((B, T)) * (segments > 0)).astype(np.float32)
    extra = {"prefix": (rng.random((B, T)) < 0.5).astype(np.int32)}
    if model == "t5":
        names = ("encoder_tokens", "encoder_segment_ids", "encoder_positions")
        extra = dict(zip(names, (read, read_segments, read_positions), strict=True))
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    return Batch(tokens, targets, weights, segments, positions, extra)


@functools.cache
def params(model: str):
    """Weights with no two alike and none zero."""
    shapes = trainer_for(model, ONE).definition.shapes
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)


def loss_and_grad(model: str, mesh: MeshConfig, **train: object):
    trainer = trainer_for(model, mesh, **train)
    weights = jax.device_put(params(model), trainer.state_shardings.params)
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    return jax.device_get(run(weights, trainer.put(batch(model)), jax.random.key(3)))


@functools.cache
def expected(model: str):
    sums, grads = loss_and_grad(model, ONE)
    assert all(np.abs(grad).max() > 1e-3 for grad in jax.tree.leaves(grads))
    return sums, grads


CASES = [
    ("t5", "data 8", "none"),
    ("t5", "fsdp 8", "full"),
    ("t5", "fsdp 2x4", "dots"),
    ("t5", "data 2, fsdp 2, tensor 2", "none"),
    ("prefix", "data 2, fsdp 2, tensor 2", "full"),
]


@pytest.mark.parametrize(("model", "mesh", "remat"), CASES)
def test_every_gradient_is_the_same_on_every_mesh(model: str, mesh: str, remat: str) -> None:
    assert_same(loss_and_grad(model, MESHES[mesh], remat=remat), expected(model), SIMPLE)


def test_parts_of_a_batch_add_up() -> None:
    assert_same(loss_and_grad("t5", MeshConfig(data=2), accumulate_steps=4), expected("t5"), SIMPLE)


def test_layers_that_are_not_scanned_have_the_same_gradients() -> None:
    trainer = trainer_for("t5", ONE, dropout_rate=0.0)
    scanned, unrolled = trainer.definition, ModelDef(T5, unrolled_layout(T5))
    assert scanned.layout.encoder is not None and scanned.layout.encoder.count == 2

    def grads(definition: ModelDef):
        def loss(weights, given):
            return trainer.objective.loss(definition.bind(weights), given, Runtime(), None).loss_sum

        weights = relayout(params("t5"), scanned.layout, definition.layout)
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(weights, batch("t5"))

    found = relayout(grads(scanned), scanned.layout, unrolled.layout)
    assert_same(jax.device_get(found), jax.device_get(grads(unrolled)), SIMPLE)


def test_an_optimizer_knows_the_encoders_weights() -> None:
    shapes = trainer_for("t5", ONE).definition.shapes
    decays = decay_mask(shapes)
    assert decays["encoder"]["periods"]["0"]["attn"]["q"]
    assert decays["prefix" if "prefix" in decays else "periods"]["0"]["cross_attn"]["o"]
    assert not decays["encoder"]["relative"]["buckets"] and not decays["relative"]["buckets"]
    found = map_named(lambda path, _: (is_stacked(path), is_in_block(path)), shapes)
    assert found["encoder"]["periods"]["0"]["mlp"]["up"] == (True, True)
    assert found["encoder"]["final_norm"]["scale"] == (False, False)
