"""One model, many meshes: the same numbers, on eight fake CPU devices."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from on_meshes import (
    MIXED,
    OPTIONS,
    SMALL,
    B,
    T,
    assert_mesh_is_one_device,
    assert_same,
    assert_training_is_one_devices,
    config,
    expected,
    loss_and_grad,
    rows_of,
    three_steps,
    trainer_of,
)

from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import make_trainer

MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=(8,)),
    "fsdp 2x4": MeshConfig(fsdp=(2, 4)),
    "data 2, fsdp 2, tensor 2": MIXED,
    "fsdp 2, tensor 4": MeshConfig(fsdp=(2,), tensor=4),
}
MODELS = {
    # Two layers are scanned and one stands behind them.
    "options": OPTIONS.replace(num_layers=3, attention_windows=(5, 5, None)),
    "learned": SMALL.replace(
        position="learned", tie_embeddings=False, mlp="gelu", qk_norm="full", embedding_norm=True
    ),
    "alibi": SMALL.replace(position="alibi", num_kv_heads=2, block="parallel"),
}
CASES = [("options", name) for name in MESHES] + [
    (model, name)
    for model in ("learned", "alibi")
    for name in ("fsdp 2x4", "data 2, fsdp 2, tensor 2")
]
# Two key heads for four devices: each has both, and reads one.
CASES += [("alibi", "fsdp 2, tensor 4")]


@pytest.mark.parametrize(("model", "mesh"), CASES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(model, mesh):
    assert_mesh_is_one_device(config(MODELS[model], MESHES[mesh]))


def test_accumulation_equals_the_large_batch():
    # Parts of unequal weight, one of them with none: a mean of means would differ.
    cfg = config(MODELS["alibi"], MeshConfig(fsdp=(2,)))
    parts = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, accumulate_steps=4))
    assert_same(loss_and_grad(parts), expected(cfg))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    found = loss_and_grad(config(MODELS["alibi"], MeshConfig(fsdp=(2,)), remat=remat))
    assert_same(found, expected(config(MODELS["alibi"])))


@pytest.mark.parametrize("mesh", ["fsdp 8", "data 2, fsdp 2, tensor 2"])
def test_no_gathered_weight_is_kept_for_the_backward_pass(mesh):
    def gathers(remat):
        cfg = config(MODELS["alibi"], MESHES[mesh], remat=remat)
        trainer = trainer_of(cfg, is_scanned=False)
        args = (trainer.abstract_state.params, rows_of(cfg), jax.random.key(0))
        return str(jax.make_jaxpr(trainer.loss_and_grad)(*args)).count("all_gather[")

    # The table before and after the blocks, and in them seven weights, once each way.
    assert gathers("full") == gathers("none") == 2 + 2 * 7


def test_bfloat16_products_run_on_a_cpu_mesh():
    sums, grads = loss_and_grad(
        config(MODELS["alibi"], MIXED, precision=PrecisionConfig("bfloat16"))
    )
    wanted = expected(config(MODELS["alibi"]))[0]
    np.testing.assert_allclose(sums.nll_sum, wanted.nll_sum, rtol=0.02)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


def test_three_steps_of_training_do_not_depend_on_the_mesh():
    assert_training_is_one_devices(config(MODELS["learned"], MIXED))


def test_one_device_has_no_collectives():
    text = three_steps(config(MODELS["learned"])).compiled.as_text()
    assert "fusion" in text
    assert not re.search(r"all-reduce|all-gather|reduce-scatter|all-to-all|permute\(", text)


def test_weights_and_their_moments_are_cut_up():
    state = trainer_of(config(MODELS["options"], MIXED)).abstract_state

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
    trainer = trainer_of(config(MODELS["alibi"], MESHES["fsdp 2x4"]))
    w = trainer.state_shardings.params["periods"]["0"]["mlp"]["up"]
    assert w.shard_shape((2, 32, 32)) == (2, 4, 32)
    assert trainer.abstract_batch.tokens.sharding.shard_shape((B, T)) == (2, T)


def test_abstract_batch_is_what_put_gives():
    cfg = config(MODELS["alibi"], MESHES["data 8"])
    trainer = trainer_of(cfg)
    made = trainer.put(rows_of(cfg))
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), made)
    assert described == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), trainer.abstract_batch
    )


@pytest.mark.parametrize(
    ("mesh", "model", "train", "words"),
    [
        (MeshConfig(data=3), {}, {}, "is 3 devices, there are 8; make the product 8"),
        (MeshConfig(fsdp=(3,)), {}, {}, "mesh fsdp=3 x tensor=1 is 3 devices, there are 8"),
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
    cfg = config(dataclasses.replace(SMALL, **model), mesh, **train)
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_trainer(cfg, make_mesh(mesh))
