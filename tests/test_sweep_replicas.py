"""Runs that train in one program are the runs that they would be alone."""

import dataclasses
import json
import math
import os
import signal

import jax
import numpy as np
import pytest
from small_run import small_config

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.errors import ConfigError, PreemptedError
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.sweep.grouping import grouped
from llmasos_jax.sweep.places import Places
from llmasos_jax.sweep.points import Point
from llmasos_jax.sweep.replicas import Together, lay_out, padded
from llmasos_jax.sweep.together import each_of, train_together
from llmasos_jax.train import spikes
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.result import read_result
from llmasos_jax.train.run import run
from llmasos_jax.train.step import make_trainer

STEPS = 8
# One rounding of a number that a run alone has as a constant; measured 2e-7 after 8 steps.
CLOSE = 1e-5


def point(name, config):
    return Point(name, name, {}, config)


def changed(config, **groups):
    parts = {name: dataclasses.replace(getattr(config, name), **v) for name, v in groups.items()}
    return dataclasses.replace(config, **parts)


def together(folder, configs, tell=lambda step, losses: None):
    """Trains configs in one program; their folders."""
    points = [point(f"p{i}", config) for i, config in enumerate(configs)]
    (group,) = grouped(points, 64)
    places = Places(folder)
    train_together(group, places, folder / "cache", tell)
    return [places.point(p.name) for p in points]


def values(folder, name="loss"):
    lines = read_metrics(folder / "metrics.jsonl")
    return {line["step"]: line[name] for line in lines if name in line}


def final_state(folder, config):
    """The last checkpoint, as a run alone would restore it."""
    one = make_mesh(dataclasses.replace(config.mesh, data=1), jax.devices()[:1])
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=1))
    keeper = Checkpointer(folder / "checkpoints")
    restored = keeper.restore(make_trainer(config, one).abstract_state)
    keeper.close()
    return restored


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


def varied_configs(folder, **base):
    """Runs that differ in every number that is not compiled in, and in all seeds."""
    start = small_config(folder, STEPS, **base)
    start = changed(
        start,
        train={"dropout_rate": 0.1, "eval_every_steps": 4},
        objective={"label_smoothing": 0.1},
        optim={"weight_decay": 0.1, "momentum": 0.9},
    )
    return [
        start,
        changed(start, train={"seed": 5}, optim={"learning_rate": 3e-2, "warmup_steps": 6}),
        changed(
            start,
            train={"init_std": 0.05, "dropout_rate": 0.3, "seed": 1},
            optim={"weight_decay": 0.02, "clip_norm": 0.1, "beta1": 0.8, "beta2": 0.99},
            objective={"label_smoothing": 0.3},
            data={"seed": 4},
        ),
        changed(start, data={"seed": 4, "heldout_fraction": 0.02}, optim={"eps": 1e-5}),
    ]


@pytest.mark.parametrize(
    "base",
    [
        {},
        {"optim": {"schedule": "wsd", "name": "muon"}},
        {"optim": {"name": "sgd"}, "precision": {"dtype": "bfloat16"}},
    ],
    ids=["adamw", "muon", "sgd in bfloat16"],
)
def test_each_is_its_run_alone(folder, tmp_path, base):
    configs = varied_configs(folder, **base)
    folders = together(tmp_path, configs)
    close = 2e-2 if "precision" in base else CLOSE
    for index, (config, where) in enumerate(zip(configs, folders, strict=True)):
        if base and index != 2:
            continue  # a program each; this one differs in most
        alone = changed(config, mesh={"data": 8}) if index == 1 else config
        solo = run(alone, tmp_path / f"solo{index}", cache=tmp_path / "cache")
        expected, found = values(tmp_path / f"solo{index}"), values(where)
        assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=close)
        names = ("heldout_loss", "learning_rate", "grad_norm", "update_norm")
        for name in names if close == CLOSE else names[:2]:
            a, b = values(where, name), values(tmp_path / f"solo{index}", name)
            np.testing.assert_allclose([*a.values()], [*b.values()], rtol=close * 10, err_msg=name)
        result = read_result(where)
        assert result is not None
        assert (result.step, result.tokens) == (solo.step, solo.tokens)
        assert result.heldout_loss == pytest.approx(solo.heldout_loss, rel=close)
        assert result.unigram_perplexity == solo.unigram_perplexity
        assert json.loads((where / "config.json").read_text())["train"]["seed"] == config.train.seed
    losses = [values(where)[STEPS] for where in folders]
    assert len(set(losses)) == len(losses)  # they did differ


@pytest.mark.parametrize(("spike_factor", "rounding"), [(None, 0.0), (1.001, 1e-6)])
def test_learning_rates_and_seeds_change_no_bit(folder, monkeypatch, spike_factor, rounding):
    """Three runs on two devices, each beside its own program on one.

    With a guard against spikes XLA adds up the gradient's norm in another order.
    """
    monkeypatch.setattr(spikes, "BEFORE", 1)  # so that six steps have some
    start = small_config(folder, 6, mesh={"data": 1}, optim={"spike_factor": spike_factor})
    configs = [
        changed(start, optim={"learning_rate": rate}, train={"seed": seed})
        for rate, seed in ((1e-3, 0), (3e-2, 1), (1e-2, 2))
    ]
    one, mesh = lay_out(start, 3, jax.devices()[:2])
    each = each_of(configs, [start.data.seed], padded(3, mesh))
    several = Together(make_trainer(start, one), mesh, each)
    states = several.init([start.train.init_std] * 4)
    alone = [make_trainer(config, make_mesh(config.mesh, jax.devices()[:1])) for config in configs]
    solos = [
        trainer.init(jax.random.key(c.train.seed))
        for trainer, c in zip(alone, configs, strict=True)
    ]
    rng = np.random.default_rng(7)
    for _ in range(6):
        batch = random_batch(alone[0], rng)
        states, metrics = several.step(states, several.put([batch]))
        for index, trainer in enumerate(alone):
            solos[index], own = trainer.step(solos[index], trainer.put(batch))
            # (Norms of all weights are only told: they may be added up in another order.)
            for name in ("loss", "nll", "grad_norm", "learning_rate"):
                found = jax.device_get(getattr(metrics, name))[index]
                expected = jax.device_get(getattr(own, name))
                assert found == pytest.approx(expected, rel=rounding, abs=0)
    for index, solo in enumerate(solos):
        for a, b in zip(jax.tree.leaves(solo), jax.tree.leaves(states.state), strict=True):
            a, b = jax.device_get(plain(a)), jax.device_get(plain(b))[index]
            np.testing.assert_allclose(b, a, rtol=100 * rounding, atol=rounding)
    if spike_factor is not None:
        skipped = jax.device_get(states.state.guard.skipped)[:3].tolist()
        assert skipped == [jax.device_get(solo.guard.skipped) for solo in solos]
        assert max(skipped) > 0 and len(set(skipped)) > 1, skipped


def plain(leaf):
    return (
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
    )


def random_batch(trainer, rng):
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), trainer.abstract_batch)
    shape = batch.tokens.shape
    tokens = rng.integers(0, 256, shape).astype(np.int32)
    return dataclasses.replace(
        batch,
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        segment_ids=np.ones(shape, np.int32),
        loss_weights=np.ones(shape, np.float32),
    )


def test_a_runs_own_folder_goes_on_alone(folder, tmp_path):
    """What a program of several leaves is a checkpoint of one, of the same weights."""
    configs = varied_configs(folder)
    folders = together(tmp_path, configs)
    run(configs[2], tmp_path / "solo", cache=tmp_path / "cache")
    found, expected = (final_state(where, configs[2]) for where in (folders[2], tmp_path / "solo"))
    assert found.step == expected.step == STEPS and found.data_state == expected.data_state
    assert found.config == expected.config | {"mesh": found.config["mesh"]}
    leaves = zip(*(jax.tree.leaves(s.state.params) for s in (found, expected)), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, atol=2e-5)
    longer = changed(configs[2], train={"steps": STEPS + 2})
    assert run(longer, folders[2], cache=tmp_path / "cache").step == STEPS + 2
    assert [*values(folders[2])] == [*range(1, STEPS + 3)]


RATES = (1e-3, 1e-2, 3e-2)


@pytest.fixture(scope="module")
def alone_on_one_device(folder):
    """The losses of runs alone, by learning rate."""
    start = small_config(folder, 4, model={"vocab_size": 264}, mesh={"preset": "data"})
    found = []
    for rate in RATES:
        where = folder / f"alone{rate}"
        run(changed(start, optim={"learning_rate": rate}), where, cache=folder / "cache")
        found.append([*values(where).values()])
    return found


@pytest.mark.parametrize(
    ("mesh", "laid"),
    [
        ({"fsdp": (2,), "tensor": 2}, {"replica": 2, "data": 1, "fsdp": 2, "tensor": 2}),
        ({"fsdp": (2,)}, {"replica": 3, "data": 1, "fsdp": 2, "tensor": 1}),
        ({"data": 4}, {"replica": 2, "data": 4, "fsdp": 1, "tensor": 1}),
        ({"preset": "fsdp"}, {"replica": 1, "data": 1, "fsdp": 8, "tensor": 1}),
    ],
)
def test_replicas_on_meshes_of_their_own(folder, tmp_path, alone_on_one_device, mesh, laid):
    """Replicas beside each other, each over several devices; three of them on two places."""
    start = small_config(folder, 4, model={"vocab_size": 264}, mesh=mesh)
    configs = [changed(start, optim={"learning_rate": rate}) for rate in RATES]
    _, whole = lay_out(start, 3)
    assert dict(whole.shape) == laid and padded(3, whole) % laid["replica"] == 0
    folders = together(tmp_path, configs)
    for expected, where in zip(alone_on_one_device, folders, strict=True):
        np.testing.assert_allclose([*values(where).values()], expected, rtol=CLOSE)


def test_what_is_left_of_the_devices_goes_to_data(folder):
    start = small_config(folder)
    assert dict(lay_out(start, 2)[1].shape) == {"replica": 2, "data": 4, "fsdp": 1, "tensor": 1}
    odd = changed(start, train={"batch_size": 6})
    assert dict(lay_out(odd, 2)[1].shape)["data"] == 3  # six rows are not cut into four
    assert dict(lay_out(start, 30)[1].shape)["replica"] == 8
    with pytest.raises(ConfigError, match="mesh"):
        lay_out(changed(start, mesh={"tensor": 16}), 2)


def test_one_that_diverges_is_frozen_and_the_others_go_on(folder, tmp_path):
    start = small_config(folder, STEPS, optim={"clip_norm": None, "name": "sgd"})
    configs = [changed(start, optim={"learning_rate": rate}) for rate in (1e-2, 1e30, 3e-2)]
    told = []
    folders = together(tmp_path, configs, lambda step, losses: told.append(losses))
    broken = json.loads((folders[1] / "diverged.json").read_text())
    step = broken["step"]
    assert 1 < step < STEPS and "at step" in broken["why"]
    assert max(values(folders[1])) == step - 1 and not (folders[1] / "result.json").exists()
    assert [math.isnan(losses[1]) for losses in told] == [n >= step for n in range(1, STEPS + 1)]
    alone = run(configs[2], tmp_path / "solo", cache=tmp_path / "cache")
    assert values(folders[2])[STEPS] == pytest.approx(alone.loss, rel=CLOSE)
    assert not any((folders[index] / "diverged.json").exists() for index in (0, 2))
    assert max(values(folders[0])) == STEPS


def test_all_that_diverge_end_the_program(folder, tmp_path):
    start = small_config(folder, 1000, optim={"clip_norm": None, "name": "sgd"})
    configs = [changed(start, optim={"learning_rate": rate}) for rate in (1e30, 2e30)]
    told = []
    together(tmp_path, configs, lambda step, losses: told.append(step))
    assert max(told) < 20


def test_stopped_and_started_again_it_is_the_same(folder, tmp_path):
    """Bit for bit, at each step: the one that has diverged, too."""
    start = small_config(
        folder, STEPS, optim={"clip_norm": None, "name": "sgd"}, train={"eval_every_steps": 3}
    )
    start = changed(start, checkpoint={"every_steps": 3}, data={"heldout_fraction": 0.2})
    configs = [
        changed(start, optim={"learning_rate": rate}, data={"seed": seed})
        for rate, seed in ((1e-2, 0), (1e30, 0), (3e-2, 9))
    ]
    straight = together(tmp_path / "straight", configs)

    class KilledError(Exception):
        pass

    def kill_at(steps):
        def tell(step, losses):
            if step in steps:
                steps.remove(step)
                raise KilledError

        return tell

    for steps in ({2}, {5}, {7}):
        with pytest.raises(KilledError):
            together(tmp_path / "killed", configs, kill_at(steps))
    killed = together(tmp_path / "killed", configs)
    for a, b in zip(straight, killed, strict=True):
        assert values(a) == values(b) and values(a, "heldout_loss") == values(b, "heldout_loss")
    for index in (0, 2):
        found = [final_state(where[index], configs[index]).state for where in (straight, killed)]
        assert jax.tree.all(
            jax.tree.map(lambda x, y: np.array_equal(x, y), *(s.params for s in found))
        )
    assert all((where[1] / "diverged.json").exists() for where in (straight, killed))


def test_a_signal_saves_at_its_step(folder, tmp_path):
    configs = [changed(small_config(folder, STEPS), train={"seed": seed}) for seed in (0, 1)]

    def tell(step, losses):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(PreemptedError, match="SIGTERM: saved at step"):
        together(tmp_path, configs, tell)
    seen = []
    together(tmp_path, configs, lambda step, losses: seen.append(step))
    assert seen[0] > 3 and seen[-1] == STEPS
    assert [*values(tmp_path / "points" / "p0")] == [*range(1, STEPS + 1)]
