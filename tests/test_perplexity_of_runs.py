"""Perplexity stands where a loss is of tokens, and nowhere else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tuning_processes import prepare

import llmasos_jax
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.labels import LOSSES
from llmasos_jax.train.metrics import UNITS


def test_every_objective_of_examples_says_its_unit() -> None:
    assert set(UNITS) == {*LOSSES, "dpo"}


@pytest.mark.parametrize(("objective", "has_one"), [("sft", True), ("dpo", False)])
def test_files_and_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, objective: str, has_one: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(tmp_path)
    result = llmasos_jax.finetune(f"{tmp_path}/tune.py:{objective}", tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps, heldout = [line for line in lines if "loss" in line], lines[-1]
    assert [("perplexity" in line) for line in steps] == [has_one] * 12
    assert ("heldout_perplexity" in heldout) == has_one
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "heldout/loss"} <= set(tags)
    assert [tag for tag in ("train/perplexity", "heldout/perplexity") if tag in tags] == (
        ["train/perplexity", "heldout/perplexity"] if has_one else []
    )
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    shown = f"{result}\n{capsys.readouterr().err}"
    assert ("perplexity" in shown) == has_one
    assert heldout["heldout_loss"] == written["heldout_loss"]
    if has_one:
        assert steps[0]["perplexity"] == pytest.approx(math.exp(steps[0]["nll"]))
        assert written["heldout_perplexity"] == pytest.approx(math.exp(heldout["heldout_loss"]))
    else:
        assert written["heldout_perplexity"] is None
        assert f"{result.heldout_loss:.4f} nats per pair" in str(result)
