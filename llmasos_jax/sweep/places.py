"""Where a sweep keeps what: a training folder for each point, one for each group."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DIVERGED, _FAILED = "diverged.json", "failed.json"


@dataclass(frozen=True)
class Places:
    """The files of a sweep's folder.

    ::

        sweep.json            what was asked: points, their overrides, the metric
        points/NAME/          a training folder; diverged.json or failed.json where it ended so
        groups/NAME/          of points that train together: group.json, checkpoints/, log.txt,
                              progress.json, time.json
        report.html, report.json

    Attributes:
      root: the sweep's folder.
    """

    root: Path

    @property
    def sweep(self) -> Path:
        """What was asked."""
        return self.root / "sweep.json"

    def point(self, name: str) -> Path:
        """A point's training folder."""
        return self.root / "points" / name

    def diverged(self, name: str) -> Path:
        """Says at which step a point's loss was not finite any more."""
        return self.point(name) / _DIVERGED

    def failed(self, name: str) -> Path:
        """Says why a point has no result, and where its log is."""
        return self.point(name) / _FAILED

    def group(self, name: str) -> Path:
        """What points that train together share."""
        return self.root / "groups" / name


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
