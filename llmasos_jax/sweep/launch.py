"""What starts the points of a sweep on a cluster, each as a run of its own on its own machines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.config.require import require_one_of
from llmasos_jax.errors import ConfigError
from llmasos_jax.launch.options import LaunchOptions, check_options, object_name
from llmasos_jax.launch.run import TARGETS, launch_of, write_files
from llmasos_jax.sweep.places import Places
from llmasos_jax.sweep.points import described, read_sweep

_PLAN, _START = "sweep.json", "start.sh"


@dataclass(frozen=True)
class SweepLaunch:
    """What was written.

    Attributes:
      on: kind of cluster.
      points: runs.
      files: of all points, then `sweep.json` and `start.sh`.
      start: the command that starts all of them.
      hosts: machines of each run.
      chips: TPU chips of each run; None where there are none.
      workdir: the sweep's folder as the hosts see it.
    """

    on: str
    points: int
    files: tuple[Path, ...]
    start: str
    hosts: int
    chips: int | None
    workdir: str

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"files": [str(file) for file in self.files]}

    def __str__(self) -> str:
        chips = f", {self.chips} chips" if self.chips is not None else ""
        plan, start = self.files[-2:]
        return (
            f"wrote {start} and the files of {self.points} points beside it\n"
            f"{self.points} runs of {self.hosts} hosts{chips} each; start them with\n"
            f"  {self.start}\n"
            f"copy {plan} into {self.workdir}; then, at any time,\n"
            f"  llmasos sweep report {self.workdir}"
        )


def write_sweep_launch(
    path: Path,
    on: str,
    out: Path,
    options: LaunchOptions,
    *,
    overrides: Mapping[str, str] | None = None,
    topology: str | None = None,
    slices: int | None = None,
) -> SweepLaunch:
    """Writes what starts each point of a sweep; all are checked before anything is written.

    The training folders are those that `llmasos sweep` would make, so that its report reads them.

    Args:
      path: of the sweep's file.
      on: as of `llmasos.launch`.
      out: likewise.
      options: their `workdir` is the sweep's folder.
      overrides: of the config that the sweep is over, as texts by path.
      topology: of each run.
      slices: of each run.

    Raises:
      ConfigError: a point is wrong or does not fit the machines; the message has its name.
    """
    if on == "tpu-vm":
        raise ConfigError(
            "--on=tpu-vm has one run at a time; on the VM itself use `llmasos sweep`, or take "
            "--on=gke or xpk"
        )
    require_one_of("--on", on, TARGETS)
    check_options(on, options, topology, slices or 1)
    sweep, out = read_sweep(path, overrides), out.absolute()
    places = Places(Path(str(options.workdir)))
    # `sweep.py` says nothing: its folder is what people name.
    stem = object_name(path.stem if path.stem != "sweep" else path.resolve().parent.name)
    files, texts, starts, made = [], [], [], None
    for point in sweep.points:
        if point.name.lower() in (_PLAN, _START):
            raise ConfigError(f'{path}: a point may not be named "{point.name}", a file beside it')
        own = dataclasses.replace(options, workdir=str(places.point(point.name)))
        short = hashlib.sha256(point.name.encode()).hexdigest()[:8]
        try:
            made, written = launch_of(
                point.config,
                on,
                out / point.name,
                own,
                topology=topology,
                slices=slices,
                name=f"{stem[:31].strip('-')}-{short}",
            )
        except ConfigError as error:
            raise ConfigError(f'{path}: point "{point.name}": {error}') from error
        files += made.files
        texts += written
        starts.append(f"{made.start}  # {point.name}\n")
    if made is None:
        raise ConfigError(f"{path} has no point")
    plan, start = out / _PLAN, out / _START
    about = f"# {len(starts)} points of {path.name}: {sweep.question}\n" if sweep.question else ""
    texts += [
        json.dumps(described(sweep), indent=2, ensure_ascii=False) + "\n",
        f"#!/bin/bash\n{about}set -euo pipefail\n\n{''.join(starts)}",
    ]
    files += [plan, start]
    write_files(files, texts)
    command = f"bash {shlex.quote(str(start))}"
    return SweepLaunch(
        on, len(starts), tuple(files), command, made.hosts, made.chips, str(places.root)
    )
