"""Cross-entropy a few tokens at a time: the same loss and gradients, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, ObjectiveConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.models.definition import file_def, init_params
from llmasos_jax.nn.runtime import Runtime, training_runtime
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import make_trainer
from llmasos_jax.train.tokens import token_sums

B, T, V, D = 4, 15, 64, 32
QUICK = {"xla_backend_optimization_level": 0}
BASE = ModelConfig(V, D, 1, context_length=512, num_heads=2, ffn_dim=32)
HEADS = {
    "tied": BASE,
    "untied": BASE.replace(tie_embeddings=False, head_bias=True),
    "mlm": BASE.replace(head="mlm", causal=False, norm="layernorm", mlp="gelu", mlp_bias=True),
    "mlm untied": BASE.replace(head="mlm", causal=False, tie_embeddings=False),
    "capped": BASE.replace(logit_soft_cap=3.0, logit_scale=0.5),
}


def batch() -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    weights = (rng.random((B, T)) * (rng.random((B, T)) > 0.2)).astype(np.float32)
    ones = np.ones((B, T), np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return Batch(ids[:, :-1], ids[:, 1:], weights, ones, positions)


def loss_and_gradients(name: str, chunk: int, runtime: Runtime, scale: float = 1.0):
    """By weights and by hidden states; 15 tokens in chunks of 4 leave one of 3."""
    cfg = Config(
        HEADS[name],
        objective=ObjectiveConfig(name="causal", z_loss=1e-2),
        train=TrainConfig(loss_chunk=chunk),
    )
    definition = file_def(cfg.model)
    params = init_params(definition, jax.random.key(1), std=0.3)
    x_btd = jax.random.normal(jax.random.key(2), (B, T, D), runtime.act_dtype)

    def loss(params, x_btd):
        sums = token_sums(cfg, definition.bind(params), x_btd, None, batch(), runtime)
        return sums.loss_sum * scale, sums

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    return run(params, x_btd)


def assert_near(found, wanted, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("name", HEADS)
def test_chunks_equal_the_whole(name: str) -> None:
    (found, found_sums), (wanted, sums) = (
        loss_and_gradients(name, size, Runtime())[:2] for size in (4, T)
    )
    assert float(sums.weight_sum) > 0
    assert float(sums.loss_sum) > float(sums.nll_sum)
    assert_near(found_sums, sums, PARITY)
    assert_near(found, wanted, PARITY)
    # What the loss does not touch has no gradient, and what it does has one.
    is_used = {bool(jnp.any(g != 0)) for g in jax.tree.leaves(found)}
    assert is_used == {True, False}


def test_chunks_are_smoothed_like_the_whole() -> None:
    runtime = Runtime(label_smoothing=jnp.float32(0.2))
    (found, found_sums), (wanted, sums) = (
        loss_and_gradients("tied", size, runtime)[:2] for size in (4, T)
    )
    _, plain = loss_and_gradients("tied", T, Runtime())
    assert float(sums.nll_sum) == float(plain.nll_sum)
    assert abs(float(sums.loss_sum - plain.loss_sum)) > 1e-2
    assert_near(found_sums, sums, PARITY)
    assert_near(found, wanted, PARITY)


def test_bfloat16_sums_over_chunks_in_float32() -> None:
    runtime = training_runtime(PrecisionConfig("bfloat16"), "tpu")
    wanted, _ = loss_and_gradients("tied", T, runtime)
    found, _ = loss_and_gradients("tied", 4, runtime)
    assert_near(found, wanted, 2**-7)


def test_float16_gradients_are_scaled_before_they_are_rounded() -> None:
    """Small ones would be zero otherwise: the loss is scaled after chunks have been scored."""
    runtime = training_runtime(PrecisionConfig("float16"), "tpu")
    scale = 2.0**12
    found, _ = loss_and_gradients("tied", 4, runtime, scale)
    wanted, _ = loss_and_gradients("tied", T, runtime, scale)
    assert_near(found, wanted, 2**-9)


def test_reports_have_no_gradient() -> None:
    cfg = Config(BASE, train=TrainConfig(loss_chunk=4))
    definition = file_def(BASE)
    params = init_params(definition, jax.random.key(1))

    def nll(x_btd):
        return token_sums(cfg, definition.bind(params), x_btd, None, batch(), Runtime()).nll_sum

    assert not jnp.any(jax.grad(nll)(jnp.ones((B, T, D))))


def trainer(mesh_cfg: MeshConfig, chunk: int, **model: object):
    cfg = Config(
        model=BASE.replace(num_heads=4, **model),
        data=DataConfig(sequence_length=16),
        objective=ObjectiveConfig(z_loss=1e-3),
        train=TrainConfig(batch_size=8, loss_chunk=chunk),
        mesh=mesh_cfg,
    )
    size = (mesh_cfg.data or 1) * int(np.prod(mesh_cfg.fsdp)) * mesh_cfg.tensor
    return make_trainer(cfg, make_mesh(mesh_cfg, jax.devices()[:size]))


@functools.cache
def rows() -> Batch:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, V, (8, 17)).astype(np.int32)
    positions = np.tile(np.arange(16, dtype=np.int32), (8, 1))
    ones = np.ones((8, 16), np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], ones.astype(np.float32), ones, positions)


@pytest.mark.parametrize("tied", [True, False])
def test_a_mesh_gives_the_gradients_of_one_device(tied: bool) -> None:
    """Vocabulary over `tensor`, weights gathered, gradients scattered back: whole as in chunks."""
    results = []
    for mesh_cfg, chunk in ((MeshConfig(data=1), 16), (MeshConfig(data=2, fsdp=(2,), tensor=2), 4)):
        run = trainer(mesh_cfg, chunk, tie_embeddings=tied)
        params = jax.device_put(init_params(run.definition, jax.random.key(1), std=0.3))
        params = jax.device_put(params, run.state_shardings.params)
        step = jax.jit(run.loss_and_grad, compiler_options=QUICK)
        compiled = step.lower(params, run.put(rows()), jax.random.key(0)).compile()
        results.append(compiled(params, run.put(rows()), jax.random.key(0)))
    assert "reduce-scatter" in compiled.as_text()
    assert_near(results[1], results[0], 1e-5)


def test_memory_is_that_of_a_chunk() -> None:
    """4 x 512 tokens of 4096 scores are 33.5 MB at once; in chunks of 64 an eighth of it."""
    temporary = {}
    for chunk in (512, 64):
        cfg = Config(BASE.replace(vocab_size=4096), train=TrainConfig(loss_chunk=chunk))
        definition = file_def(cfg.model)
        params = init_params(definition, jax.random.key(0))
        tokens = Batch(
            *(jnp.zeros((4, 512), jnp.int32),) * 2, jnp.ones((4, 512)), *(jnp.ones((4, 512)),) * 2
        )

        def loss(params, x_btd, cfg=cfg, definition=definition, tokens=tokens):
            model = definition.bind(params)
            return token_sums(cfg, model, x_btd, None, tokens, Runtime()).loss_sum

        grad = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=QUICK)
        compiled = grad.lower(params, jnp.ones((4, 512, D))).compile()
        temporary[chunk] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary[512] > 4 * 512 * 4096 * 4
    assert temporary[64] < 0.25 * temporary[512]
