"""Training of encoder-decoders and prefix models: the same numbers on every mesh."""

import functools

import jax
import numpy as np
import pytest
from on_meshes import (
    MIXED,
    ONE,
    QUICK,
    B,
    V,
    assert_same,
    config,
    loss_and_grad,
    params,
    trainer_of,
)
from on_meshes import expected as on_one

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, MeshConfig, ObjectiveConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.models.definition import ModelDef, relayout
from llmasos_jax.models.layout import unrolled_layout
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.weights import decay_mask, is_in_block, is_stacked, map_named

S, T = 12, 8
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=(8,)),
    "fsdp 2x4": MeshConfig(fsdp=(2, 4)),
    "data 2, fsdp 2, tensor 2": MIXED,
}
RELATIVE = {"position": "relative", "relative_buckets": 8, "relative_max_distance": 16}
T5 = ModelConfig(
    V, 32, 3, context_length=16, num_heads=4, num_kv_heads=2, ffn_dim=32, mlp="relu", **RELATIVE
).replace(encoder=Encoder(2), attention_windows=(3, 3, None), attention_scale=1.0)
MODELS = {
    "t5": ("span_corruption", T5),
    "prefix": ("prefix_lm", T5.replace(encoder=Encoder(), prefix_lm=True)),
}


def run_of(model: str, mesh: MeshConfig, **train: object) -> Config:
    objective = ObjectiveConfig(name=MODELS[model][0], z_loss=1e-3)
    return config(MODELS[model][1], mesh, objective=objective, sequence_length=T, **train)


@functools.cache
def batch(model: str) -> Batch:
    """Rows of two texts and padding; the encoder's rows have another length than the decoder's."""
    rng = np.random.default_rng(0)

    def texts(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segments = np.sort(rng.integers(1, 3, (B, length)), axis=1).astype(np.int32)
        segments[:, -2:] = 0
        positions = np.tile(np.arange(length, dtype=np.int32), (B, 1))
        return rng.integers(0, V, (B, length)).astype(np.int32), segments, positions

    (tokens, segments, positions), (read, read_segments, read_positions) = texts(T), texts(S)
    weights = (rng.random((B, T)) * (segments > 0)).astype(np.float32)
    extra = {"prefix": (rng.random((B, T)) < 0.5).astype(np.int32)}
    if model == "t5":
        names = ("encoder_tokens", "encoder_segment_ids", "encoder_positions")
        extra = dict(zip(names, (read, read_segments, read_positions), strict=True))
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    return Batch(tokens, targets, weights, segments, positions, extra)


def rows(cfg: Config) -> Batch:
    return batch("t5" if cfg.model.encoder.num_layers else "prefix")


def expected(model: str):
    sums, grads = on_one(run_of(model, ONE), rows)
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
    assert_same(loss_and_grad(run_of(model, MESHES[mesh], remat=remat), rows), expected(model))


def test_parts_of_a_batch_add_up() -> None:
    found = loss_and_grad(run_of("t5", MeshConfig(data=2), accumulate_steps=4), rows)
    assert_same(found, expected("t5"))


def test_layers_that_are_not_scanned_have_the_same_gradients() -> None:
    trainer = trainer_of(run_of("t5", ONE, dropout_rate=0.0))
    scanned, unrolled = trainer.definition, ModelDef(T5, unrolled_layout(T5))
    assert scanned.layout.encoder is not None and scanned.layout.encoder.count == 2

    def grads(definition: ModelDef):
        def loss(weights, given):
            return trainer.objective.loss(definition.bind(weights), given, Runtime(), None).loss_sum

        weights = relayout(params(T5), scanned.layout, definition.layout)
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(weights, batch("t5"))

    found = relayout(grads(scanned), scanned.layout, unrolled.layout)
    assert_same(jax.device_get(found), jax.device_get(grads(unrolled)))


def test_an_optimizer_knows_the_encoders_weights() -> None:
    shapes = trainer_of(run_of("t5", ONE)).definition.shapes
    decays = decay_mask(shapes)
    assert decays["encoder"]["periods"]["0"]["attn"]["q"]
    assert decays["prefix" if "prefix" in decays else "periods"]["0"]["cross_attn"]["o"]
    assert not decays["encoder"]["relative"]["buckets"] and not decays["relative"]["buckets"]
    found = map_named(lambda path, _: (is_stacked(path), is_in_block(path)), shapes)
    assert found["encoder"]["periods"]["0"]["mlp"]["up"] == (True, True)
    assert found["encoder"]["final_norm"]["scale"] == (False, False)
