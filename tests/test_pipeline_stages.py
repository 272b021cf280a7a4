"""Layers in stages on other devices: the same numbers as on one, little time wasted."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from on_meshes import (
    BERT,
    CAUSAL,
    QUICK,
    SMALL,
    T,
    V,
    assert_mesh_is_one_device,
    assert_same,
    assert_training_is_one_devices,
    config,
    rows_of,
    trainer_of,
)

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.schedule import Schedule
from llmasos_jax.plan.hlo import read_program
from llmasos_jax.train.step import make_trainer

MODELS = {
    # Four periods of two layers, and one layer behind them.
    "windows": SMALL.replace(
        num_layers=9, num_kv_heads=2, attention_windows=(5, None) * 4 + (5,), qkv_bias=True
    ),
    # A dense layer before four with experts.
    "experts": ModelConfig(
        *(V, 32, 5, T), num_heads=4, ffn_dim=32, experts=Experts(4, 2, 16, (0,), shared_ffn_dim=8)
    ),
    # Without rotary positions a bias of all keys changes nothing: its gradient is rounding alone.
    "pairs": BERT.replace(num_layers=4, attention_out_bias=True, mlp_bias=True),
    "plain": SMALL.replace(num_layers=4),
}
STAGES = {
    "4 stages of 8 parts": MeshConfig(data=2, pipeline=4, microbatches=8),
    "2 stages, twice": MeshConfig(
        data=1, pipeline=2, fsdp=(2,), tensor=2, microbatches=4, pipeline_repeats=2
    ),
    "2 stages, contexts": MeshConfig(data=1, pipeline=2, context=2, fsdp=(2,)),
    "2 stages, experts": MeshConfig(
        data=1, pipeline=2, fsdp=(2,), expert=2, microbatches=4, pipeline_repeats=2
    ),
    "2 stages": MeshConfig(data=1, pipeline=2),
}


@pytest.mark.parametrize(
    ("model", "mesh", "train"),
    [
        ("windows", "4 stages of 8 parts", {}),
        ("windows", "2 stages, twice", {"remat": "full"}),
        ("windows", "2 stages, contexts", {}),
        ("experts", "2 stages, experts", {}),
        ("experts", "2 stages", {"accumulate_steps": 2}),
        ("pairs", "2 stages", {}),
    ],
)
def test_loss_and_gradients_do_not_depend_on_stages(model, mesh, train):
    name = "mlm_nsp" if model == "pairs" else "causal"
    objective = dataclasses.replace(CAUSAL, name=name)
    # What experts are balanced over is a part of a batch.
    assert_mesh_is_one_device(config(MODELS[model], STAGES[mesh], objective=objective, **train))


def test_training_goes_on_with_other_stages(tmp_path):
    found = assert_training_is_one_devices(config(MODELS["plain"], STAGES["2 stages, twice"]))
    trainer, state = found.trainer, found.state
    saved = Checkpointer(tmp_path)
    saved.save(3, state, {}, {})
    saved.wait()
    scores = []
    for mesh in (STAGES["2 stages"], MeshConfig(data=2, tensor=2)):
        cfg = config(MODELS["plain"], mesh)
        other = trainer_of(cfg)
        restored = saved.restore(other.abstract_state).state
        for leaf, before in zip(
            jax.tree.leaves(restored.params), jax.tree.leaves(state.params), strict=True
        ):
            np.testing.assert_array_equal(leaf, before)
        evaluate = jax.jit(other.held_out_sums, compiler_options=QUICK)
        scores.append(evaluate(restored.params, other.put(rows_of(cfg))))
    saved.close()
    assert_same(*map(jax.device_get, scores))
    assert trainer.state_shardings.params["periods"]["0"]["attn"]["q"].shard_shape(
        (4, 32, 4, 8)
    ) == (2, 16, 2, 8)


@pytest.mark.parametrize(
    ("schedule", "ticks", "bubble"),
    [
        (Schedule(2, 2), 3, 1 / 3),
        (Schedule(4, 8), 11, 3 / 11),
        (Schedule(4, 8, 2), 19, 3 / 19),
        (Schedule(3, 6, 4), 26, 1 / 13),
    ],
)
def test_a_schedule_does_each_piece_of_work_once_and_in_order(schedule, ticks, bubble):
    assert schedule.ticks == ticks
    assert schedule.bubble == pytest.approx(bubble)
    done_at, idle = {}, 0
    for tick in range(schedule.ticks):
        for stage in range(schedule.stages):
            turn = schedule.turn(tick, stage)
            if turn.is_busy:
                run = int(turn.repeat) * schedule.stages + stage
                assert (run, int(turn.microbatch)) not in done_at
                done_at[run, int(turn.microbatch)] = tick
            else:
                idle += 1
    runs = range(schedule.stages * schedule.repeats)
    assert set(done_at) == {(run, part) for run in runs for part in range(schedule.microbatches)}
    for run, part in done_at:
        assert run == 0 or done_at[run - 1, part] == done_at[run, part] - 1
    assert idle / (schedule.ticks * schedule.stages) == pytest.approx(bubble)


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("stages", [2, 3, 4, 6, 8])
def test_each_run_of_layers_moves_once(stages, repeats):
    found = set()
    for moves in Schedule(stages, stages, repeats).moves():
        assert sorted(to for _, to, _ in moves) == list(range(stages))
        for stage, (source, to, place) in enumerate(moves):
            run = stage * repeats + source
            assert run == place * stages + to
            found.add(run)
    assert found == set(range(stages * repeats))


def jaxpr_of(model: ModelConfig, mesh: MeshConfig, **train: object):
    cfg = config(model, mesh, **train)
    trainer = trainer_of(cfg)
    weights, key = trainer.abstract_state.params, jax.random.key(0)
    return trainer, jax.make_jaxpr(trainer.loss_and_grad)(weights, rows_of(cfg), key)


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_program_does_not_grow_with_depth(repeats):
    mesh = MeshConfig(data=1, pipeline=2, fsdp=(2,), pipeline_repeats=repeats)
    sizes = set()
    for num_layers in (4, 16):
        program = jaxpr_of(SMALL.replace(num_layers=num_layers), mesh)[1]
        sizes.add(len(re.findall(" = ", str(program))))
    assert len(sizes) == 1


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_no_tick_keeps_weights(remat):
    mesh = MeshConfig(data=1, pipeline=2, fsdp=(2,), pipeline_repeats=2)
    trainer, program = jaxpr_of(SMALL.replace(num_layers=8, ffn_dim=48), mesh, remat=remat)
    ticks, text = trainer.runtime.schedule.ticks, str(program)
    # The residual stream of each tick and period is there, no [D, F] of them, whole or in part.
    assert f"f32[{ticks},2,4,{T},32]" in text
    assert not re.search(rf"f32\[{ticks},(2,)?(2,)?(32|16),48\]", text)


@pytest.mark.parametrize(
    ("mesh", "model", "train", "words"),
    [
        ({"pipeline": 4}, {"num_layers": 6}, {}, "make mesh.pipeline 2, 3 or 6"),
        ({"pipeline": 4}, {"num_layers": 7}, {}, "the 7 periods of 1 layers"),
        ({"pipeline": 2, "pipeline_repeats": 3}, {"num_layers": 4}, {}, "set mesh.pipeline=1, or"),
        ({"pipeline": 4, "microbatches": 2}, {"num_layers": 4}, {}, "make it 4 or 8"),
        ({"pipeline": 2, "microbatches": 6}, {"num_layers": 4}, {}, "make it 2 or 4"),
        ({"pipeline": 2}, {"num_layers": 4}, {"batch_size": 12}, "not divisible by 8"),
        ({"pipeline": 2}, {"attention_windows": (5, None)}, {}, "no run of this model's 2 layers"),
        ({"pipeline": 2}, {"encoder": Encoder(num_layers=2)}, {}, "an encoder-decoder has no"),
        ({"microbatches": 4}, {}, {}, "mesh.pipeline=1 has none"),
    ],
)
def test_what_has_no_equal_stages_is_refused(mesh, model, train, words):
    cfg = config(SMALL.replace(**model), MeshConfig(**mesh), **train)
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_trainer(cfg, make_mesh(cfg.mesh))


@pytest.mark.slow
def test_stages_on_a_tpu_pass_activations_on(compiler):
    cfg = Config(
        model=ModelConfig(512, 256, 4, context_length=256, num_heads=2, ffn_dim=512),
        data=DataConfig(sequence_length=256),
        train=TrainConfig(batch_size=8, steps=10, remat="full"),
        precision=PrecisionConfig("bfloat16"),
        mesh=MeshConfig(data=2, pipeline=2),
    )
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, compiler("v5e:2x2")))
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    program = read_program(lowered.compile().as_text())
    ticks = trainer.runtime.schedule.ticks
    moved = [c for c in program.of("collective-permute") if c.num_bytes == 2 * 2 * 256 * 256]
    assert sum(c.runs for c in moved) == 3 * 2 * ticks
    # Two layers of a stage in each tick, forward and once again, then two kernels backward.
    assert sorted(program.kernels.values()) == [2 * ticks, 2 * ticks, 2 * 2 * ticks]
