"""A run that was stopped or killed and went on is, bit for bit, the run that never was."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_run import At, Record, small_config

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import to_dict
from llmasos_jax.errors import PreemptedError
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.run import run
from llmasos_jax.train.step import make_trainer

OPTIMIZED = True  # conftest.py: programs as users have them

ROOT = Path(__file__).resolve().parent.parent
# What a line of metrics.jsonl says of the clock, not of the run.
CLOCK = ("tokens_per_s", "step_time_s", "mfu", "data_wait")


def final_bytes(cfg, workdir):
    """Every array of the newest checkpoint, as bytes."""
    keeper = Checkpointer(workdir / "checkpoints")
    restored = keeper.restore(make_trainer(cfg, make_mesh(cfg.mesh)).abstract_state)
    keeper.close()
    state, data = restored.state, restored.data_state
    leaves = jax.tree.leaves((state.step, state.params, state.opt_state))
    leaves.append(jax.random.key_data(state.key))
    return restored.step, data, [np.asarray(leaf).tobytes() for leaf in leaves]


def lines_of(workdir):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def test_stopped_and_killed_equals_straight(tmp_path):
    """Stopped politely after step 3, killed in step 6, with dropout and evaluation."""
    cfg = small_config(
        tmp_path,
        steps=8,
        train={"dropout_rate": 0.2, "eval_every_steps": 3, "accumulate_steps": 1},
        checkpoint={"every_steps": 5},
    )
    go = lambda name, *hooks: run(cfg, tmp_path / name, hooks, cache=tmp_path / "cache")
    go("straight")

    stop = lambda: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match="SIGTERM: saved at step [34] of 8"):
        go("broken", At(3, stop))

    def crash():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        go("broken", At(6, crash))
    assert max(line["step"] for line in lines_of(tmp_path / "broken")) == 6
    record = Record()
    result = go("broken", record)
    assert record.events[0] == ("start", 5)

    assert final_bytes(cfg, tmp_path / "broken") == final_bytes(cfg, tmp_path / "straight")
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "straight")
    assert result.step == 8


SLOW = """
import time
from llmasos_jax.train.hooks import Hook

class Slow(Hook):
    def on_step(self, step, values):
        time.sleep(0.2)
"""


def test_sigterm_from_outside_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
    (tmp_path / "slow_hook.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = small_config(tmp_path, train={"hooks": ("slow_hook:Slow",)})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(cfg)))
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "llmasos_jax", "train", f"--config={path}"]
    command.append(f"--workdir={tmp_path / 'stopped'}")
    start = lambda: subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with start() as first:
        for line in first.stderr:
            if line.startswith("step 2/"):
                first.send_signal(signal.SIGTERM)
                break
        _, err = first.communicate(timeout=60)
    assert first.returncode == 75, err
    saved = max(line["step"] for line in lines_of(tmp_path / "stopped"))
    assert 2 <= saved < 8
    assert f"SIGTERM: saved at step {saved} of 8; the same command goes on" in err

    with start() as second:
        _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert f"from step {saved} of 8 steps" in err
    run(cfg, tmp_path / "straight", cache=tmp_path / "cache")
    assert final_bytes(cfg, tmp_path / "stopped") == final_bytes(cfg, tmp_path / "straight")
    assert lines_of(tmp_path / "stopped") == lines_of(tmp_path / "straight")
