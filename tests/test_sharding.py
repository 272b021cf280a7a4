"""One model, many meshes: the same numbers, on eight fake CPU devices."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from tolerances import SIMPLE

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
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import Trainer, make_trainer

B, T, V = 16, 16, 64
# Compiling is most of the time here, and tiny programs need no optimising.
QUICK = {"xla_backend_optimization_level": 0}
FLOAT32 = PrecisionConfig()
ONE = MeshConfig(data=1)
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=(8,)),
    "fsdp 2x4": MeshConfig(fsdp=(2, 4)),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=(2,), tensor=2),
    "fsdp 2, tensor 4": MeshConfig(fsdp=(2,), tensor=4),
}
SMALL = ModelConfig(V, 32, 2, context_length=T, num_heads=4, ffn_dim=32)
MODELS = {
    # Two layers are scanned and one stands behind them.
    "options": SMALL.replace(
        num_layers=3,
        num_kv_heads=2,
        attention_windows=(5, 5, None),
        attention_soft_cap=20.0,
        qk_norm="head",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        norm="layernorm",
        logit_soft_cap=30.0,
    ),
    "learned": SMALL.replace(
        position="learned", tie_embeddings=False, mlp="gelu", qk_norm="full", embedding_norm=True
    ),
    "alibi": SMALL.replace(position="alibi", num_kv_heads=2, block="parallel"),
}


def trainer_for(
    model: str,
    mesh: MeshConfig,
    precision: PrecisionConfig = FLOAT32,
    **train: object,
) -> Trainer:
    settings = {"batch_size": B, "dropout_rate": 0.1, "steps": 10} | train
    cfg = Config(
        model=MODELS[model],
        data=DataConfig(sequence_length=T),
        objective=ObjectiveConfig(z_loss=1e-3),
        # With the default eps Adam makes whole steps of gradients that are rounding alone.
        optim=OptimConfig(warmup_steps=0, learning_rate=1e-2, eps=1e-6),
        train=TrainConfig(**settings),
        precision=precision,
        mesh=mesh,
    )
    num_devices = (mesh.data or 1) * int(np.prod(mesh.fsdp)) * mesh.tensor
    return make_trainer(cfg, make_mesh(mesh, jax.devices()[:num_devices]))


@functools.cache
def batch() -> Batch:
    """Rows with several documents, padding, and weights that differ; whole rows weigh nothing."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    segments[:, -2:] = 0
    weights = rng.random((B, T)).astype(np.float32) * (rng.random((B, 1)) > 0.4)
    weights[segments == 0] = 0
    weights[4:6] = 0
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], weights.astype(np.float32), segments, positions)


@functools.cache
def params(model: str):
    """Weights with no two alike and none zero, biases and scales included."""
    shapes = trainer_for(model, ONE).definition.shapes
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3
    return jax.tree.map(draw, shapes)


def loss_and_grad(model: str, mesh: MeshConfig, **train: object):
    trainer = trainer_for(model, mesh, **train)
    weights = jax.device_put(params(model), trainer.state_shardings.params)
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    sums, grads = run(weights, trainer.put(batch()), jax.random.key(3))
    for grad, weight in zip(jax.tree.leaves(grads), jax.tree.leaves(weights), strict=True):
        assert grad.sharding.is_equivalent_to(weight.sharding, grad.ndim)
    return jax.device_get(sums), jax.device_get(grads)


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


CASES = [("options", name) for name in MESHES] + [
    (model, name)
    for model in ("learned", "alibi")
    for name in ("fsdp 2x4", "data 2, fsdp 2, tensor 2")
]
# Two key heads for four devices: each has both, and reads one.
CASES += [("alibi", "fsdp 2, tensor 4")]


@pytest.mark.parametrize(("model", "mesh"), CASES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(model, mesh):
    sums, grads = loss_and_grad(model, MESHES[mesh])
    assert_same(sums, expected(model)[0])
    assert_same(grads, expected(model)[1])


def test_every_weight_has_a_gradient():
    for model in MODELS:
        for path, grad in jax.tree_util.tree_leaves_with_path(expected(model)[1]):
            assert np.abs(grad).max() > 1e-4, f"{model}: {path}"


def test_accumulation_equals_the_large_batch():
    # Parts of unequal weight, one of them with none: a mean of means would differ.
    sums, grads = loss_and_grad("alibi", MeshConfig(fsdp=(2,)), accumulate_steps=4)
    assert_same(sums, expected("alibi")[0])
    assert_same(grads, expected("alibi")[1])


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    assert_same(loss_and_grad("alibi", MeshConfig(fsdp=(2,)), remat=remat), expected("alibi"))


@pytest.mark.parametrize("mesh", ["fsdp 8", "data 2, fsdp 2, tensor 2"])
def test_no_gathered_weight_is_kept_for_the_backward_pass(mesh):
    def gathers(remat):
        trainer = trainer_for("alibi", MESHES[mesh], remat=remat)
        params, key = trainer.abstract_state.params, jax.random.key(0)
        return str(jax.make_jaxpr(trainer.loss_and_grad)(params, batch(), key)).count("all_gather[")

    # The table before and after the blocks, and in them seven weights, once each way.
    assert gathers("full") == gathers("none") == 2 + 2 * 7


def test_bfloat16_products_run_on_a_cpu_mesh():
    sums, grads = loss_and_grad(
        "alibi", MESHES["data 2, fsdp 2, tensor 2"], precision=PrecisionConfig("bfloat16")
    )
    np.testing.assert_allclose(sums.nll_sum, expected("alibi")[0].nll_sum, rtol=0.02)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


@functools.cache
def three_steps(mesh_name: str | None):
    """First and last parameters of three steps, their metrics, and the compiled step."""
    trainer = trainer_for("learned", MESHES[mesh_name] if mesh_name else ONE)
    state, metrics = trainer.init(jax.random.key(7)), []
    assert_placed(state, trainer.state_shardings)
    first = jax.device_get(state.params)
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    compiled = lowered.compile(compiler_options=QUICK)
    for _ in range(3):
        state, step_metrics = compiled(state, trainer.put(batch()))
        metrics.append(jax.device_get(step_metrics))
    assert_placed(state, trainer.state_shardings)
    assert int(state.step) == 3
    return first, jax.device_get(state.params), metrics, compiled


def assert_placed(arrays, shardings):
    for array, sharding in zip(jax.tree.leaves(arrays), jax.tree.leaves(shardings), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
        assert array.addressable_shards[0].data.shape == sharding.shard_shape(array.shape)


def test_three_steps_of_training_do_not_depend_on_the_mesh():
    first, last, metrics, _ = three_steps("data 2, fsdp 2, tensor 2")
    wanted_first, wanted_last, wanted_metrics, _ = three_steps(None)
    jax.tree.map(np.testing.assert_array_equal, first, wanted_first)
    assert metrics[2].loss < metrics[0].loss - 0.1
    assert_same(metrics, wanted_metrics)
    assert_same(last, wanted_last)


def test_one_device_has_no_collectives():
    text = three_steps(None)[3].as_text()
    assert "fusion" in text
    assert not re.search(r"all-reduce|all-gather|reduce-scatter|all-to-all|permute\(", text)


def test_weights_and_their_moments_are_cut_up():
    state = trainer_for("options", MESHES["data 2, fsdp 2, tensor 2"]).abstract_state

    def part(leaf):
        return leaf.sharding.shard_shape(leaf.shape)

    block = state.params["periods"]["0"]
    assert block["attn"]["q"].shape == (2, 32, 4, 8)
    assert part(block["attn"]["q"]) == (2, 16, 2, 8)
    assert part(block["attn"]["k"]) == (2, 16, 1, 8)
    assert part(block["attn"]["o"]) == (2, 2, 8, 16)
    assert part(block["attn"]["q_bias"]) == (2, 2, 8)
    assert part(block["mlp"]["up"]) == (2, 16, 16)
    assert part(block["mlp"]["down"]) == (2, 16, 16)
    assert part(block["attn_norm"]["scale"]) == (2, 32)
    assert part(state.params["suffix"]["0"]["mlp"]["gate"]) == (16, 16)
    assert part(state.params["embed"]["table"]) == (32, 16)
    is_adam = lambda node: hasattr(node, "mu")
    (adam,) = filter(is_adam, jax.tree.leaves(state.opt_state, is_leaf=is_adam))
    for moment in (adam.mu, adam.nu):
        assert jax.tree.map(part, moment) == jax.tree.map(part, state.params)


def test_two_fsdp_axes_split_one_dimension():
    trainer = trainer_for("alibi", MESHES["fsdp 2x4"])
    w = trainer.state_shardings.params["periods"]["0"]["mlp"]["up"]
    assert w.shard_shape((2, 32, 32)) == (2, 4, 32)
    assert trainer.abstract_batch.tokens.sharding.shard_shape((B, T)) == (2, T)


def test_abstract_batch_is_what_put_gives():
    trainer = trainer_for("alibi", MESHES["data 8"])
    made = trainer.put(batch())
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), made)
    assert described == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), trainer.abstract_batch
    )


@pytest.mark.parametrize(
    ("mesh", "model", "train", "words"),
    [
        (MeshConfig(data=3), {}, {}, "is 3 devices, there are 8; make the product 8"),
        (MeshConfig(fsdp=(3,)), {}, {}, "mesh data=2 x fsdp=3 x tensor=1 is 6 devices"),
        (MeshConfig(), {}, {"batch_size": 12}, "batch_size=12 is not divisible by 8"),
        (MeshConfig(), {}, {"accumulate_steps": 4}, "make it a multiple of 32"),
        (
            MeshConfig(tensor=2),
            {"num_heads": 6, "num_kv_heads": 3, "head_dim": 8},
            {},
            "make that mesh axis a divisor",
        ),
        (MeshConfig(tensor=8), {}, {}, "size 4, which mesh axis 'tensor' does not cut into 8"),
        (MeshConfig(fsdp=(8,)), {"embedding_dim": 36, "head_dim": 8}, {}, 'axis "embed" has size'),
        (MeshConfig(tensor=2), {"vocab_size": 63}, {}, 'embed.table: axis "vocab" has size 63'),
        (MeshConfig(tensor=4), {"ffn_dim": 30}, {}, 'axis "ffn" has size 30'),
    ],
)
def test_what_does_not_divide_is_named(mesh, model, train, words):
    settings = {"batch_size": B} | train
    cfg = Config(
        model=dataclasses.replace(SMALL, **model),
        data=DataConfig(sequence_length=T),
        train=TrainConfig(**settings),
        mesh=mesh,
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_trainer(cfg, make_mesh(mesh))
