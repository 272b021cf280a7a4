"""Training a mixture of experts: the same on every mesh, and the losses that balance experts."""

import dataclasses

import jax
import numpy as np
import pytest
from on_meshes import (
    CAUSAL,
    MIXED,
    ONE,
    QUICK,
    T,
    V,
    assert_mesh_is_one_device,
    assert_same,
    batch,
    config,
    trainer_of,
)
from on_meshes import params as params_of
from tolerances import SIMPLE

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, MeshConfig, ObjectiveConfig, OptimConfig
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.step import Trainer

MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=(8,)),
    "fsdp 2x4": MeshConfig(fsdp=(2, 4)),
    "data 2, fsdp 2, tensor 2": MIXED,
}
# A dense layer stands before three that are scanned.
MODEL = ModelConfig(
    *(V, 32, 4, T),
    num_heads=4,
    ffn_dim=32,
    experts=Experts(4, 2, 16, (0,), shared_ffn_dim=8, shared_gate=True),
)


def run_of(mesh: MeshConfig, objective: ObjectiveConfig = CAUSAL, **train: object) -> Config:
    optim = OptimConfig(warmup_steps=0, learning_rate=3e-3, schedule="constant")
    return config(MODEL, mesh, objective=objective, optim=optim, **train)


def trainer_for(mesh: MeshConfig, objective: ObjectiveConfig = CAUSAL, **train: object) -> Trainer:
    return trainer_of(run_of(mesh, objective, **train))


def params():
    return params_of(MODEL)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_gradients_and_reports_do_not_depend_on_the_mesh(mesh: str) -> None:
    assert_mesh_is_one_device(run_of(MESHES[mesh]))


def test_capacity_and_parts_do_not_depend_on_the_mesh() -> None:
    options = {"accumulate_steps": 2, "expert_capacity": 0.8}
    sums = assert_mesh_is_one_device(run_of(MeshConfig(data=2, fsdp=(2,)), **options))
    assert 0.02 < sums.extra["expert_drops"] / sums.weight_sum < 0.5


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
