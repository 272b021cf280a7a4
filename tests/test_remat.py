"""What the backward pass keeps: the same loss and gradients, and what is kept is really kept."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tolerances import PARITY

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import REMAT_TAGS, Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.remat import check_remat
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import make_trainer

T, ROWS, L = 16, 4, 2
MODEL = ModelConfig(64, 32, L, context_length=T, num_heads=4, num_kv_heads=2, ffn_dim=48)
FAST = {"xla_backend_optimization_level": 0}
POLICIES = {
    "none": {"remat": "none"},
    "full": {"remat": "full"},
    "dots": {"remat": "dots"},
    "qkv": {"remat": "tags", "remat_save": ("q", "k", "v")},
    "all": {"remat": "tags", "remat_save": REMAT_TAGS},
    "offload": {"remat": "tags", "remat_save": ("up",), "remat_offload": ("q", "block")},
}


def trainer_of(fsdp: int, **remat: object):
    mesh_cfg = MeshConfig(fsdp=(fsdp,))
    cfg = Config(
        MODEL,
        data=DataConfig(sequence_length=T),
        train=TrainConfig(batch_size=ROWS, **remat),
        mesh=mesh_cfg,
    )
    trainer = make_trainer(cfg, make_mesh(mesh_cfg, jax.devices()[:fsdp]))
    # Kept by the loop alone: what is written out needs no policy to be found in the program.
    runtime = dataclasses.replace(trainer.runtime, max_unrolled=1)
    return dataclasses.replace(trainer, runtime=runtime)


def batch() -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (ROWS, T + 1)).astype(np.int32)
    segments = np.sort(rng.integers(1, 3, (ROWS, T)), axis=1).astype(np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (ROWS, 1))
    weights = np.ones((ROWS, T), np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, segments, positions)


@functools.cache
def loss_and_grad(fsdp: int, policy: str):
    trainer = trainer_of(fsdp, **POLICIES[policy])
    params = trainer.init(jax.random.key(1)).params
    run = jax.jit(trainer.loss_and_grad, compiler_options=FAST)
    sums, grads = run(params, trainer.put(batch()), jax.random.key(2))
    return float(sums.loss_sum), jax.tree.map(np.asarray, grads)


@pytest.mark.parametrize(
    ("policy", "fsdp"),
    [("full", 1), ("full", 2), ("dots", 1), ("qkv", 2), ("all", 1), ("offload", 1), ("offload", 2)],
)
def test_each_policy_gives_the_same_gradients(policy, fsdp):
    loss, grads = loss_and_grad(fsdp, policy)
    wanted_loss, wanted = loss_and_grad(fsdp, "none")
    np.testing.assert_allclose(loss, wanted_loss, rtol=PARITY)
    for found, right in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(found - right) <= PARITY * np.linalg.norm(right)


def products(**remat: object) -> int:
    """Products in the traced step; the layers stand in it once, forward and backward."""
    trainer = trainer_of(1, **remat)
    text = str(
        jax.make_jaxpr(trainer.loss_and_grad)(
            trainer.abstract_state.params, trainer.abstract_batch, jax.random.key(0)
        )
    )
    return text.count("dot_general[")


@functools.cache
def products_of_full_remat() -> int:
    return products(remat="full")


@pytest.mark.parametrize(
    ("tags", "spared"),
    [
        (("q",), 1),
        (("q", "k", "v"), 3),
        # Scores and their product with the values are still needed for their own gradients.
        (("attention",), 1),
        (("attention_out",), 1),
        (("gate", "up"), 2),
        (("mlp_out",), 0),
        (("block",), 0),
    ],
)
def test_a_kept_tensor_is_not_computed_again(tags, spared):
    kept = products(remat="tags", remat_save=tags)
    assert products_of_full_remat() - kept == spared
    assert products(remat="tags", remat_offload=tags) == kept


def test_what_is_offloaded_goes_to_the_hosts_memory():
    trainer = trainer_of(1, **POLICIES["offload"])
    arguments = (trainer.abstract_state.params, trainer.abstract_batch, jax.random.key(0))
    text = str(jax.make_jaxpr(trainer.loss_and_grad)(*arguments))
    assert text.count("<host>") >= 2, "q and block"


def test_a_tag_that_the_model_has_not_is_refused():
    plain = dataclasses.replace(MODEL, mlp="gelu")
    train = TrainConfig(remat="tags", remat_save=("up", "gate"))
    with pytest.raises(ConfigError, match='has no "gate"'):
        check_remat(Config(plain, data=DataConfig(sequence_length=T), train=train))


def test_a_shared_expert_has_the_tags_of_an_mlp():
    train = TrainConfig(remat="tags", remat_save=("up", "gate"))
    data = DataConfig(sequence_length=T)
    experts = Experts(count=2, per_token=1)
    with pytest.raises(ConfigError, match='has no "(up|gate)", all its layers have experts'):
        check_remat(Config(MODEL.replace(experts=experts), data=data, train=train))
    shared = dataclasses.replace(experts, shared_ffn_dim=16)
    check_remat(Config(MODEL.replace(experts=shared), data=data, train=train))
