"""Writes a sweep's report: the page, the figures, what TensorBoard shows."""

from __future__ import annotations

import os
from pathlib import Path

from llmasos_jax.sweep.places import Places, write_json
from llmasos_jax.sweep.report.hparams import write_hparams
from llmasos_jax.sweep.report.outcomes import read_outcomes
from llmasos_jax.sweep.report.page import page
from llmasos_jax.sweep.report.report import SweepReport
from llmasos_jax.sweep.report.standings import standings

__all__ = ["SweepReport", "write_report"]


def write_report(places: Places) -> SweepReport:
    """Reads a sweep's folder, done or not, and writes `report.html` and `report.json` into it.

    TensorBoard's HParams go to `tensorboard_hparams/`.

    Raises:
      ConfigError: it is no sweep's folder, or a file in it is damaged.
    """
    outcomes = read_outcomes(places)
    report = SweepReport(places.root, outcomes, tuple(standings(outcomes)))
    write_json(places.root / "report.json", report.to_dict())
    _write_text(report.page, page(report))
    write_hparams(places, outcomes)
    return report


def _write_text(path: Path, text: str) -> None:
    """Writes a file whole, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
