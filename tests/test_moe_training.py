"""Training a mixture of experts: the same on every mesh, and the losses that balance experts."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from test_sharding import QUICK, B, T, V, assert_same, batch
from tolerances import SIMPLE

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
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import Trainer, make_trainer

ONE = MeshConfig(data=1)
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=(8,)),
    "fsdp 2x4": MeshConfig(fsdp=(2, 4)),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=(2,), tensor=2),
}
# A dense layer stands before three that are scanned.
MODEL = ModelConfig(
    *(V, 32, 4, T),
    num_heads=4,
    ffn_dim=32,
    experts=Experts(4, 2, 16, (0,), shared_ffn_dim=8, shared_gate=True),
)
OBJECTIVE = ObjectiveConfig(z_loss=1e-3, router_balance=0.3, router_z=0.1)


def trainer_for(mesh: MeshConfig, objective: ObjectiveConfig = OBJECTIVE, **train) -> Trainer:
    cfg = Config(
        model=MODEL,
        data=DataConfig(sequence_length=T),
        objective=objective,
        optim=OptimConfig(warmup_steps=0, learning_rate=3e-3, schedule="constant"),
        train=TrainConfig(**{"batch_size": B, "dropout_rate": 0.1, "steps": 10, **train}),
        mesh=mesh,
    )
    num_devices = (mesh.data or 1) * int(np.prod(mesh.fsdp)) * mesh.tensor
    return make_trainer(cfg, make_mesh(mesh, jax.devices()[:num_devices]))


@functools.cache
def params():
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3
    return jax.tree.map(draw, trainer_for(ONE).definition.shapes)


def loss_and_grad(mesh: MeshConfig, **train):
    trainer = trainer_for(mesh, **train)
    weights = jax.device_put(params(), trainer.state_shardings.params)
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    return jax.device_get(run(weights, trainer.put(batch()), jax.random.key(3)))


@functools.cache
def expected(**train):
    return loss_and_grad(ONE, **train)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_gradients_and_reports_do_not_depend_on_the_mesh(mesh: str) -> None:
    sums, grads = loss_and_grad(MESHES[mesh])
    assert_same(sums, expected()[0])
    assert_same(grads, expected()[1])


def test_capacity_and_parts_do_not_depend_on_the_mesh() -> None:
    options = {"accumulate_steps": 2, "expert_capacity": 0.8}
    sums, grads = loss_and_grad(MeshConfig(data=2, fsdp=(2,)), **options)
    assert 0.02 < sums.extra["expert_drops"] / sums.weight_sum < 0.5
    assert_same(sums, expected(**options)[0])
    assert_same(grads, expected(**options)[1])


def test_every_weight_has_a_gradient() -> None:
    for path, grad in jax.tree_util.tree_leaves_with_path(expected()[1]):
        assert np.abs(grad).max() > 1e-4, path


def test_losses_are_those_of_the_global_batch_in_numpy() -> None:
    trainer, data = trainer_for(ONE, dropout_rate=0.0), batch()
    model = ModelDef(MODEL, trainer.definition.layout).bind(jax.device_put(params()))
    run = lambda tokens, positions, segments: (
        model.hidden(
            tokens, positions_bt=positions, segment_ids_bt=segments, runtime=Runtime()
        ).routing
    )
    run = jax.jit(run, compiler_options=QUICK)
    routing = jax.device_get(run(data.tokens, data.positions, data.segment_ids))
    assert routing.chosen_e.shape == (3, 4)
    tokens = (data.segment_ids > 0).sum()
    np.testing.assert_array_equal(routing.tokens, tokens)
    np.testing.assert_array_equal(routing.chosen_e.sum(-1), 2 * tokens)
    fractions, shares = routing.chosen_e / (2 * tokens), routing.share_e / tokens
    balance = (4 * (fractions * shares).sum(-1)).mean()
    sums = jax.device_get(trainer.evaluate(params(), trainer.put(data)))
    found = {name: float(value / sums.weight_sum) for name, value in sums.extra.items()}
    assert found["router_balance"] == pytest.approx(balance, rel=SIMPLE) and balance > 1.005
    assert found["router_z"] == pytest.approx((routing.z / tokens).mean(), rel=SIMPLE)
    assert found["expert_load"] == pytest.approx((fractions.max(-1) * 4).mean(), rel=SIMPLE)
    assert found["expert_drops"] == 0.0
    plain = trainer_for(ONE, ObjectiveConfig(z_loss=1e-3, router_balance=0, router_z=0))
    without = jax.device_get(plain.evaluate(params(), plain.put(data)))
    added = float(sums.loss_sum - without.loss_sum) / float(sums.weight_sum)
    wanted = 0.3 * found["router_balance"] + 0.1 * found["router_z"]
    assert added == pytest.approx(wanted, rel=1e-3)


def test_evaluation_drops_nothing() -> None:
    trainer = trainer_for(ONE, expert_capacity=0.1)
    whole = trainer_for(ONE)
    found, wanted = (t.evaluate(params(), t.put(batch())) for t in (trainer, whole))
    assert_same(jax.device_get(found), jax.device_get(wanted))


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_balance_loss_balances(weight: float) -> None:
    """Every token is first sent to the same two experts; only the loss spreads them."""
    objective = ObjectiveConfig(router_balance=weight, router_z=0.0)
    trainer = trainer_for(ONE, objective, dropout_rate=0.0)
    state = trainer.init(jax.random.key(0))
    block = state.params["periods"]["0"]
    # The mean of all embeddings points to experts 0 and 1.
    table = state.params["embed"]["table"] + 0.05
    router = block["moe"]["router"].at[:, :, :2].add(0.05)
    blocks = {**block, "moe": {**block["moe"], "router": router}}
    params = {**state.params, "periods": {"0": blocks}}
    params["embed"] = {**params["embed"], "table": table}
    params = jax.device_put(params, trainer.state_shardings.params)
    state = dataclasses.replace(state, params=params)
    loads, data = [], trainer.put(batch())
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    step = lowered.compile(compiler_options=QUICK)
    for _ in range(24):
        state, metrics = step(state, data)
        loads.append(float(metrics.extra["expert_load"]))
    assert loads[0] > 1.9, "2 is all tokens on two of four experts"
    assert (loads[-1] < 1.35) if weight else (loads[-1] > 1.5), loads
