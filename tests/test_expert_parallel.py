"""Experts on several devices: tokens go to them and come back, and the numbers stay the same."""

import functools

import jax
import numpy as np
import pytest
from test_sharding import ONE, QUICK, B, T, V, assert_same, batch

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
)
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import Trainer, make_trainer

MESHES = {
    "expert 2": MeshConfig(data=1, expert=2),
    "expert 4": MeshConfig(data=1, expert=4),
    "expert 8": MeshConfig(data=1, expert=8),
    "fsdp 2, expert 4": MeshConfig(data=1, fsdp=(2,), expert=4),
    "data 2, expert 2, tensor 2": MeshConfig(data=2, expert=2, tensor=2),
    "fsdp 2, expert 2, tensor 2": MeshConfig(data=1, fsdp=(2,), expert=2, tensor=2),
    "data 2, fsdp 2, expert 2": MeshConfig(data=2, fsdp=(2,), expert=2),
}
SMALL = ModelConfig(V, 32, 2, context_length=T, num_heads=4, ffn_dim=32)
MODELS = {
    "mixtral": SMALL.replace(experts=Experts(8, 2, 16, router="softmax_chosen")),
    # A dense layer first, then experts in groups beside a shared one (DeepSeek-V3).
    "deepseek": SMALL.replace(
        num_layers=3,
        experts=Experts(
            *(8, 3, 16, (0,), "sigmoid", True, 1.8, True, 4, 2, "top2"), shared_ffn_dim=16
        ),
    ),
}


def num_devices(mesh: MeshConfig) -> int:
    return (mesh.data or 1) * int(np.prod(mesh.fsdp)) * mesh.expert * mesh.tensor


def trainer_for(model: str, mesh: MeshConfig, **train: object) -> Trainer:
    settings = {"batch_size": B, "dropout_rate": 0.1, "steps": 10} | train
    cfg = Config(
        model=MODELS[model],
        data=DataConfig(sequence_length=T),
        objective=ObjectiveConfig(z_loss=1e-3, router_balance=0.3, router_z=0.1),
        # With the default eps Adam makes whole steps of gradients that are rounding alone.
        optim=OptimConfig(warmup_steps=0, learning_rate=1e-2, eps=1e-6),
        train=TrainConfig(**settings),
        mesh=mesh,
    )
    return make_trainer(cfg, make_mesh(mesh, jax.devices()[: num_devices(mesh)]))


@functools.cache
def params(model: str):
    shapes = trainer_for(model, ONE).definition.shapes
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)


def loss_and_grad(model: str, mesh: MeshConfig, **train: object):
    trainer = trainer_for(model, mesh, **train)
    weights = jax.device_put(params(model), trainer.state_shardings.params)
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    sums, grads = run(weights, trainer.put(batch()), jax.random.key(3))
    for grad, weight in zip(jax.tree.leaves(grads), jax.tree.leaves(weights), strict=True):
        assert grad.sharding.is_equivalent_to(weight.sharding, grad.ndim)
    return jax.device_get(sums), jax.device_get(grads)


@functools.cache
def expected(model: str, **train: object):
    return loss_and_grad(model, ONE, **train)


CASES = [("mixtral", name, None) for name in MESHES] + [
    ("mixtral", "expert 8", 0.8),
    ("mixtral", "fsdp 2, expert 2, tensor 2", 0.8),
    ("deepseek", "expert 4", None),
    ("deepseek", "fsdp 2, expert 2, tensor 2", None),
    ("deepseek", "data 2, fsdp 2, expert 2", 0.5),
]


@pytest.mark.parametrize(("model", "mesh", "capacity"), CASES)
def test_loss_and_gradients_are_one_devices(model, mesh, capacity):
    train = {} if capacity is None else {"expert_capacity": capacity}
    sums, grads = loss_and_grad(model, MESHES[mesh], **train)
    wanted_sums, wanted_grads = expected(model, **train)
    drops = sums.extra["expert_drops"] / sums.weight_sum
    assert drops == 0 if capacity is None else 0.02 < drops < 0.7
    assert_same(sums, wanted_sums)
    assert_same(grads, wanted_grads)
