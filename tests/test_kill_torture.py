"""The short version of experiments/acceptance/kill_torture.py: one kill of each kind."""

import importlib.util

import pytest
from commands import ROOT


@pytest.mark.slow
def test_a_run_killed_before_in_and_while_saving_a_step_is_the_run(tmp_path):
    path = ROOT / "experiments" / "acceptance" / "kill_torture.py"
    spec = importlib.util.spec_from_file_location("kill_torture", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.STEPS_OF_A_LIFE = 8
    # More steps than lives need: on a busy machine many saves pass before one is seen half written.
    seen = script.torture(tmp_path, kills=3, steps=100)
    assert seen["moments"] == {"before the first step": 1, "in a save": 1, "in a step": 1}
    assert (seen["steps"], seen["losses_compared"], seen["different"]) == (100, 102, 0)
    assert seen["steps_begun_by_the_killed_run"] >= 100
