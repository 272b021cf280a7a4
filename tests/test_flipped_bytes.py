"""The short version of experiments/acceptance/flipped_bytes.py: each file a few times."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
from commands import ROOT

from llmasos_jax.checkpoint.orbax import Checkpointer


def test_a_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = ROOT / "experiments" / "acceptance" / "flipped_bytes.py"
    spec = importlib.util.spec_from_file_location("flipped_bytes", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    keeper = Checkpointer(tmp_path)
    stack = jnp.arange(64.0).reshape(4, 16)
    state = {"params": {"periods": {"w": stack}}, "key": jax.random.key(1), "n": jnp.int32(3)}
    keeper.save(3, state, {"next": 3}, {"name": "tiny"})
    keeper.close()
    seen = script.flip_all(tmp_path / "3", samples=50, seed=1)
    assert seen["samples"] == 50 and seen["faults"] == []
    assert seen["detected"] > 30
    # Orbax's marks alone: nothing that a run goes on from is in them.
    assert {*seen["harmless_in"]} <= {"_CHECKPOINT_METADATA", "commit_success.txt"}
