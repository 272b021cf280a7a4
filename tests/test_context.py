"""Tokens of a sequence on several devices: the same numbers, on eight fake CPU devices."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tolerances import SIMPLE

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
)
from llmasos_jax.data.batch import Batch
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.rules import training_rules
from llmasos_jax.plan.hlo import read_program
from llmasos_jax.train.batches import batch_specs
from llmasos_jax.train.objective import TOKENS
from llmasos_jax.train.step import Trainer, make_trainer

B, T, V = 4, 16, 64
QUICK = {"xla_backend_optimization_level": 0}
EXCHANGES = ("all_to_all", "ring")


def mesh_of(cfg: MeshConfig) -> jax.sharding.Mesh:
    num = (cfg.data or 1) * int(np.prod(cfg.fsdp)) * cfg.context * cfg.tensor
    return make_mesh(cfg, jax.devices()[:num])


def manual(exchange: str, data: int = 1, context: int = 4, tensor: int = 1) -> Manual:
    mesh = mesh_of(MeshConfig(data=data, context=context, tensor=tensor))
    return Manual(mesh, training_rules(mesh), exchange)


SMALL = ModelConfig(V, 32, 2, context_length=T, num_heads=4, ffn_dim=32)
MODELS = {
    "options": SMALL.replace(
        num_heads=8,
        num_kv_heads=2,
        attention_windows=(5, None),
        attention_soft_cap=20.0,
        qk_norm="head",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        norm="layernorm",
        logit_soft_cap=30.0,
    ),
    "alibi": SMALL.replace(position="alibi", num_kv_heads=2, block="parallel"),
    # The balance of experts is over all tokens, on whatever devices.
    "learned": SMALL.replace(
        position="learned", tie_embeddings=False, experts=Experts(4, 2, dense_layers=(0,))
    ),
    "relative": SMALL.replace(position="relative", prefix_lm=True),
    "bert": SMALL.replace(
        causal=False,
        head="mlm",
        pooler=True,
        next_sentence=True,
        token_types=2,
        position="learned",
        norm="layernorm",
        norm_placement="post",
        final_norm=False,
        embedding_norm=True,
        mlp="gelu",
    ),
}
OBJECTIVES = {"bert": "mlm_nsp", "relative": "prefix_lm"}
ONE = MeshConfig(data=1)


def trainer_for(model: str, mesh: MeshConfig, **train: object) -> Trainer:
    settings = {"batch_size": B, "dropout_rate": 0.1, "steps": 10} | train
    cfg = Config(
        model=MODELS[model],
        data=DataConfig(sequence_length=T),
        objective=ObjectiveConfig(
            name=OBJECTIVES.get(model, "causal"), z_loss=1e-3, router_balance=0.1, router_z=0.1
        ),
        optim=OptimConfig(warmup_steps=0, learning_rate=1e-2, eps=1e-6),
        train=TrainConfig(**settings),
        mesh=mesh,
    )
    return make_trainer(cfg, mesh_of(mesh))


@functools.cache
def batch(model: str) -> Batch:
    """Documents that cross the borders between devices, padding, weights that differ."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    segments = np.sort(rng.integers(1, 3, (B, T)), axis=1).astype(np.int32)
    segments[:, -2:] = 0
    weights = rng.random((B, T)).astype(np.float32) * (segments > 0)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    made = Batch(tokens[:, :-1], tokens[:, 1:], weights, segments, positions)
    if model == "relative":
        prefix = (positions < 6).astype(np.int32)
        return dataclasses.replace(made, extra={"prefix": prefix})
    if model != "bert":
        return made
    # Three places: no number of devices divides them. The last row only fills up the batch.
    segments = np.where(segments > 0, 1, 0).astype(np.int32)
    segments[-1] = 0
    weights = np.ones((B, 3), np.float32)
    weights[0, 2] = weights[-1] = 0
    return dataclasses.replace(
        made,
        targets=rng.integers(0, V, (B, 3)).astype(np.int32),
        loss_weights=weights,
        segment_ids=segments,
        extra={
            "masked_positions": np.array([[1, 6, 0], [3, 4, 13], [8, 9, 10], [0, 0, 0]], np.int32),
            "token_types": (positions > 6).astype(np.int32),
            "next_sentence": np.array([0, 1, 1, 0], np.int32),
        },
    )


@functools.cache
def params(model: str):
    """Weights with no two alike and none zero, biases and scales included."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3
    return jax.tree.map(draw, trainer_for(model, ONE).definition.shapes)


def loss_and_grad(model: str, mesh: MeshConfig, **train: object):
    trainer = trainer_for(model, mesh, **train)
    weights = jax.device_put(params(model), trainer.state_shardings.params)
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    return jax.device_get(run(weights, trainer.put(batch(model)), jax.random.key(3)))


@functools.cache
def expected(model: str):
    return loss_and_grad(model, ONE)


def assert_same(found, wanted, tolerance=SIMPLE):
    """Each leaf by itself: one that is wrong must not hide behind large ones."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error:.2e}"


CASES = [
    ("options", MeshConfig(data=1, context=4, tensor=2)),
    ("options", MeshConfig(fsdp=(2,), context=2, tensor=2, context_exchange="ring")),
    ("alibi", MeshConfig(fsdp=(2,), context=4, context_exchange="ring")),
    ("learned", MeshConfig(data=2, context=2, context_exchange="ring")),
    ("relative", MeshConfig(data=1, context=2, tensor=2)),
    ("relative", MeshConfig(data=1, context=4, context_exchange="ring")),
    ("bert", MeshConfig(fsdp=(2,), context=4)),
    ("bert", MeshConfig(data=2, context=2, tensor=2, context_exchange="ring")),
]


@pytest.mark.parametrize(("model", "mesh"), CASES)
def test_loss_and_gradients_do_not_depend_on_who_has_the_tokens(model, mesh):
    sums, grads = loss_and_grad(model, mesh)
    assert_same(sums, expected(model)[0])
    assert_same(grads, expected(model)[1])


def test_a_ring_that_is_kept_goes_round_once():
    mesh = MeshConfig(data=1, context=4, context_exchange="ring")

    def moves(**train):
        trainer = trainer_for("alibi", mesh, **train)
        args = (trainer.abstract_state.params, trainer.abstract_batch, jax.random.key(0))
        return str(jax.make_jaxpr(trainer.loss_and_grad)(*args)).count("ppermute[")

    # Three turns of keys and values; back with their gradients, which then go home.
    kept = moves(remat="tags", remat_save=("q", "k", "v", "attention"))
    assert kept == 3 * 2 + 3 * 4 + 2
    assert moves(remat="full") == kept + 3 * 2


def test_every_weight_has_a_gradient():
    for model in MODELS:
        for path, grad in jax.tree_util.tree_leaves_with_path(expected(model)[1]):
            assert np.abs(grad).max() > 1e-4, f"{model}: {path}"


@functools.cache
def three_steps(mesh: MeshConfig):
    """Last parameters and metrics of three steps, then a held-out batch's sums."""
    trainer = trainer_for("alibi", mesh)
    state, metrics = trainer.init(jax.random.key(7)), []
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    compiled = lowered.compile(compiler_options=QUICK)
    for _ in range(3):
        state, step_metrics = compiled(state, trainer.put(batch("alibi")))
        metrics.append(jax.device_get(step_metrics))
    evaluate = trainer.evaluate.lower(state.params, trainer.abstract_batch)
    sums = evaluate.compile(compiler_options=QUICK)(state.params, trainer.put(batch("alibi")))
    return jax.device_get((state.params, metrics, sums)), trainer


def test_three_steps_and_an_evaluation_do_not_depend_on_who_has_the_tokens():
    (params, metrics, sums), trainer = three_steps(MeshConfig(fsdp=(2,), context=2, tensor=2))
    (wanted_params, wanted_metrics, wanted_sums), _ = three_steps(ONE)
    assert metrics[2].loss < metrics[0].loss - 0.1
    assert_same(metrics, wanted_metrics)
    assert_same(params, wanted_params)
    assert_same(sums, wanted_sums)
    tokens = trainer.put(batch("alibi")).tokens
    assert tokens.sharding == trainer.abstract_batch.tokens.sharding
    assert tokens.sharding.shard_shape((B, T)) == (B // 2, T // 2)


def test_what_has_no_axis_of_tokens_is_whole():
    specs = batch_specs(
        batch("bert"), trainer_for("bert", ONE).objective.token_fields, manual("ring", data=2)
    )
    cut, whole = PartitionSpec(("data", "fsdp"), "context"), PartitionSpec(("data", "fsdp"))
    assert specs.tokens == specs.positions == specs.extra["token_types"] == cut
    assert specs.targets == specs.loss_weights == specs.extra["masked_positions"] == whole


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (TOKENS, "cuts batch.targets (4, 3) along its second axis"),
        (("token",), 'token_fields has "token", which no batch has'),
    ],
)
def test_wrong_token_fields_are_named(fields, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        batch_specs(batch("bert"), fields, manual("ring", data=2))


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        ({"context": 8}, {}, "does not divide 4, model.num_heads=4 / mesh.tensor=1"),
        ({"context": 4, "tensor": 2}, {}, "does not divide 2, model.num_heads=4 / mesh.tensor=2"),
        ({"context": 2}, {"data": DataConfig(sequence_length=15)}, "sequence_length=15; make it"),
        (
            {"context": 2},
            {"model": SMALL.replace(encoder=Encoder(2))},
            "model.encoder.num_layers=2 makes two",
        ),
        (
            {"context": 2, "context_exchange": "ring"},
            {"model": SMALL.replace(attention="llmasos_jax.nn.kernels:dot_product")},
            'attention="llmasos_jax.nn.kernels:dot_product" is another one',
        ),
        (
            {"context": 2, "context_exchange": "ring"},
            {"kernels": KernelsConfig("reference")},
            'kernels.attention="reference" names a kernel',
        ),
        (
            {"context": 2, "context_exchange": "ring"},
            {"kernels": KernelsConfig(block_q=256)},
            "has no kernel whose blocks",
        ),
    ],
)
def test_what_is_not_computed_over_split_tokens_is_refused(mesh, changes, words):
    mesh = MeshConfig(data=1, **mesh)
    settings = {
        "model": SMALL,
        "data": DataConfig(sequence_length=T),
        "train": TrainConfig(batch_size=B),
    }
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_trainer(Config(mesh=mesh, **settings | changes), mesh_of(mesh))


@pytest.fixture
def compiler(monkeypatch):
    """The TPU compiler on a host without one."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_tpu_step_with_split_tokens_compiles(exchange, compiler):
    from jax.experimental import topologies

    mesh_cfg = MeshConfig(data=1, context=2, tensor=2, context_exchange=exchange)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    cfg = Config(
        model=ModelConfig(
            1024, 256, 2, context_length=512, num_heads=4, num_kv_heads=2, head_dim=128, ffn_dim=512
        ),
        data=DataConfig(sequence_length=512),
        train=TrainConfig(batch_size=4, remat="full"),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh_cfg,
    )
    trainer = make_trainer(cfg, make_mesh(mesh_cfg, topology.devices))
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    text = lowered.compile().as_text()
    splash = {name: runs for name, runs in read_program(text).kernels.items() if "splash" in name}
    if exchange == "ring":
        assert not splash and "collective-permute" in text
        return
    forward = sum(runs for name, runs in splash.items() if "fwd" in name)
    # Two layers, once more in the backward pass; then queries, and keys and values.
    assert forward == 4 and sum(splash.values()) - forward == 4
    assert "all-to-all" in text
