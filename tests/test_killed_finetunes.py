"""`llmasos finetune`, killed by SIGKILL and started again: the adapter of a run never killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tuning_processes import Tuning, prepare, while_saving

OPTIONS = ("--config.train.steps=6", "--config.checkpoint.every_steps=3")


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_killed_while_it_saves_it_comes_to_the_same_adapter(tmp_path: Path, objective: str) -> None:
    prepare(tmp_path)
    straight = Tuning(tmp_path, "straight", objective, OPTIONS, quick=True)
    assert straight.finish() == 0, straight.said()
    killed = Tuning(tmp_path, "killed", objective, OPTIONS, quick=True)
    assert killed.stop(while_saving(6)) == -signal.SIGKILL
    assert killed.saved() == [3] and killed.half_saved() == ["6.orbax-checkpoint-tmp"]
    assert killed.finish() == 0, killed.said()
    assert "from step 3 of 6 steps" in killed.said()
    leaves = dict(straight.leaves())
    assert sum(name.startswith("params/") for name in leaves) == 14
    assert dict(killed.leaves()) == leaves
    assert killed.losses() == straight.losses() and len(straight.losses()) == 14
