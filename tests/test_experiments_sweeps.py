"""The sweeps of `experiments/`: each can be run as it stands, and what is made of their reports."""

from __future__ import annotations

import json
import math
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.sweep.grouping import grouped
from llmasos_jax.sweep.points import read_sweep

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SWEEPS = sorted(path.parent.name for path in EXPERIMENTS.glob("*/sweep.py"))
REPORTS = sorted(path.parent.name for path in EXPERIMENTS.glob("*/report.json"))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_can_be_run(name: str) -> None:
    sweep = read_sweep(EXPERIMENTS / name / "sweep.py")
    groups = grouped(sweep.points, most=64)
    assert sum(len(group.points) for group in groups) == len(sweep.points)
    assert len(groups) < len(sweep.points)  # seeds share a program


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_of_the_sweep_beside_it(name: str) -> None:
    folder = EXPERIMENTS / name
    sweep = read_sweep(folder / "sweep.py")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["file"] == f"experiments/{name}/sweep.py"
    assert (report["question"], report["metric"]) == (sweep.question, sweep.metric)
    asked = Counter(point.setting for point in sweep.points)
    assert {s["setting"]: s["seeds"]["asked"] for s in report["settings"]} == asked
    assert report["counts"]["failed"] == report["counts"]["waiting"] == 0
    assert f"experiments/{name}/sweep.py" in (folder / "README.md").read_text("utf-8")


def test_the_scaling_law_of_a_law_is_that_law() -> None:
    module = runpy.run_path(str(EXPERIMENTS / "scaling" / "fit.py"))
    sizes = 39 * np.array([16.0, 24, 32, 48, 64]) ** 2
    law = module["fit"](sizes, 1.5 + (2e4 / sizes) ** 0.3)
    assert law.alpha == pytest.approx(0.3, rel=1e-3)
    assert law.floor == pytest.approx(1.5, rel=1e-3)
    assert law.scale == pytest.approx(2e4, rel=1e-2)
    assert law(39 * 96**2) == pytest.approx(1.5 + (2e4 / (39 * 96**2)) ** 0.3, rel=1e-4)
    plain = module["fit"](sizes, (2e4 / sizes) ** 0.3, has_floor=False)
    assert plain.floor == 0 and plain.alpha == pytest.approx(0.3, rel=1e-3)


def test_the_scaling_laws_result_is_of_its_report_and_within_3_percent() -> None:
    folder = EXPERIMENTS / "scaling"
    module = runpy.run_path(str(folder / "fit.py"))
    losses = module["read"](folder / "report.json")
    result = json.loads((folder / "result.json").read_text("utf-8"))
    *fitted, held = losses
    law = module["fit"](39.0 * np.array(fitted) ** 2, np.array([losses[w].mean() for w in fitted]))
    predicted = result["prediction"]
    assert law(39 * held**2) == pytest.approx(predicted["predicted"], abs=1e-3)
    assert abs(law(39 * held**2) / losses[held].mean() - 1) <= 0.03 and predicted["is_within"]
    low, high = result["fit"]["alpha"]["interval"]
    assert low <= result["fit"]["alpha"]["value"] <= high


def test_bits_per_byte_are_of_the_text_whatever_its_tokens() -> None:
    module = runpy.run_path(str(EXPERIMENTS / "tokenizers" / "bits.py"))
    point = lambda setting, loss, tokens: {
        "name": setting,
        "setting": setting,
        "seed": 0,
        "status": "done",
        "values": {"heldout_loss": loss, "heldout_tokens": tokens},
    }
    # 1,000 bytes at one bit each: 1,000 tokens of one bit, or 250 of four.
    points = [point("bytes", math.log(2), 1000.0), point("pieces", 4 * math.log(2), 250.0)]
    found = module["bits_per_byte"]({"points": points}, 1000)
    assert found == {"bytes": {0: pytest.approx(1.0)}, "pieces": {0: pytest.approx(1.0)}}
