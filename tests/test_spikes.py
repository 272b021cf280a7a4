"""Steps whose gradient is far above its usual norm are left out, the same ones after a stop."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from small_run import At, Record, small_config

from llmasos_jax.errors import ConfigError
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.run import run
from llmasos_jax.train.schedules import build_schedule
from llmasos_jax.train.spikes import BEFORE, WINDOW, start_guard

FACTOR = 1.2  # low, so that an ordinary run has spikes
STEPS = 40


def config(folder, steps=STEPS, **changed):
    return small_config(
        folder, steps=steps, optim={"spike_factor": FACTOR, "warmup_steps": 4} | changed
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spikes")
    record = Record()
    cfg = config(folder)
    run(cfg, folder / "run", [record], cache=folder / "cache")
    return folder, cfg, record.values


def told(norms):
    """Which of these norms are spikes, said once more in plain Python."""
    seen, spikes = [], []
    mean = 0.0
    for norm in norms:
        is_spike = len(seen) >= BEFORE and norm > FACTOR * mean
        spikes.append(is_spike)
        seen.append(min(norm, FACTOR * mean) if is_spike else norm)
        mean += (seen[-1] - mean) / min(len(seen), WINDOW)
    return spikes


def test_spikes_are_those_above_the_running_mean_and_move_nothing(straight):
    _, cfg, values = straight
    values = [values[step] for step in sorted(values)]
    spikes = told([v["grad_norm"] for v in values])
    assert [v["spike"] for v in values] == spikes
    assert 2 <= sum(spikes) < STEPS - BEFORE and values[-1]["spikes"] == sum(spikes)
    schedule = build_schedule(cfg.optim, STEPS)
    skipped = np.cumsum([0, *spikes])
    for step, value in enumerate(values):
        # The learning rate follows the updates, not the steps.
        expected = float(schedule(step - skipped[step]))
        assert value["learning_rate"] == pytest.approx(expected, rel=1e-6)
        if value["spike"] and step + 1 < STEPS:
            assert values[step + 1]["param_norm"] == value["param_norm"]
        elif step + 1 < STEPS:
            assert values[step + 1]["param_norm"] != value["param_norm"]


def test_a_run_that_goes_on_leaves_out_the_same_steps(straight, capsys):
    folder, cfg, values = straight
    record = Record()
    first = next(step for step in sorted(values) if values[step]["spike"])
    cfg = dataclasses.replace(
        cfg,
        train=dataclasses.replace(cfg.train, log_every_steps=7),
        checkpoint=dataclasses.replace(cfg.checkpoint, every_steps=5),
    )
    with pytest.raises(KeyboardInterrupt):
        run(cfg, folder / "again", [At(first + 1, stop)], cache=folder / "cache")
    assert f"step {first}  left out: its gradient norm is" in capsys.readouterr().err
    run(cfg, folder / "again", [record], cache=folder / "cache")
    assert record.values and min(record.values) > 1
    rates = ("tokens_per_s", "step_time_s", "mfu", "data_wait")
    for step, value in record.values.items():
        wanted = values[step]
        assert {n: v for n, v in value.items() if n not in rates} == {
            n: v for n, v in wanted.items() if n not in rates
        }
    # A spike is in the file though no line is due.
    lines = read_metrics(folder / "again" / "metrics.jsonl")
    assert {line["step"] for line in lines if line.get("spike")} == {
        step for step, value in values.items() if value["spike"]
    }


def stop():
    raise KeyboardInterrupt


def test_a_factor_that_would_leave_out_half_of_all_steps_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="optim.spike_factor=1.0 must be above 1"):
        config(tmp_path, spike_factor=1.0)


def test_norms_of_zero_do_not_leave_out_all_that_follow():
    guard, left = start_guard(5.0), 0
    for norm in [0.0] * 25 + [1.0] * 200:
        left += bool(guard.is_spike(jnp.float32(norm), 5.0))
        guard = guard.after(jnp.float32(norm), 5.0)
    assert left < 100
    assert not guard.is_spike(jnp.float32(1), 5.0)
