"""Runs a config straight, runs it again with kills, and compares the two."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.config.build import to_dict
from llmasos_jax.config.devices import HostsConfig, MeshConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import CheckpointError, ConfigError, TrainingFailedError
from llmasos_jax.train.hooks import metrics_path, read_metrics
from llmasos_jax.verify.digests import different, digests_of_checkpoint
from llmasos_jax.verify.phases import Phase, is_killed, read_batches
from llmasos_jax.verify.result import TOLERANCE, Compared, Verified
from llmasos_jax.verify.witness import HOOK, Orders

MOMENTS = {"in a step": False, "while saving": True}


@dataclass(frozen=True)
class Stage:
    """Where a run is between two kills.

    Attributes:
      hosts: processes.
      mesh: sizes of `data`, `fsdp` and `tensor`; None for the config's mesh.
    """

    hosts: int = 1
    mesh: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        host = f"{self.hosts} process{'es' if self.hosts > 1 else ''}"
        return host if self.mesh is None else f"{host} on {'x'.join(map(str, self.mesh))}"


def stages_of(hosts: Sequence[int], meshes: Sequence[str], num_kills: int) -> list[Stage]:
    """The stages of a run, from the values of `--hosts` and `--mesh`.

    Raises:
      ConfigError: there are not as many as the kills part, or a mesh is not "DATAxFSDPxTENSOR".

    Example:
      >>> [str(stage) for stage in stages_of([1, 2], ["4x1x1"], 1)]
      ['1 process on 4x1x1', '2 processes on 4x1x1']
    """
    sizes: list[tuple[int, int, int] | None] = []
    for text in meshes:
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
        if found is None:
            raise ConfigError(f"--mesh={text} is not DATAxFSDPxTENSOR, such as 8x1x1,2x2x2")
        sizes.append((int(found[1]), int(found[2]), int(found[3])))
    wanted = num_kills + 1
    parts: list[list[Any]] = []
    for flag, values in (("--hosts", list(hosts) or [1]), ("--mesh", sizes or [None])):
        if len(values) not in (1, wanted):
            raise ConfigError(
                f"{flag} has {len(values)} values, and {num_kills} kill{'s' * (num_kills > 1)} "
                f"part a run into {wanted}; give {wanted}, or one"
            )
        parts.append(values * wanted if len(values) == 1 else values)
    if min(parts[0]) < 1:
        raise ConfigError(f"--hosts={','.join(map(str, hosts))}: at least 1 process each")
    if len({math.prod(mesh) for mesh in parts[1] if mesh}) > 1:
        raise ConfigError(f"--mesh={','.join(meshes)}: give meshes of as many devices each")
    return [Stage(*both) for both in zip(*parts, strict=True)]


def verify(
    config: Config,
    num_steps: int,
    kill_at: Sequence[int],
    stages: Sequence[Stage],
    folder: Path | None,
    tell: Callable[[str], None],
) -> Verified:
    """See `llmasos.verify_resume`."""
    _check(num_steps, kill_at)
    root = Path(tempfile.mkdtemp(prefix="llmasos-verify-")) if folder is None else folder
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give --workdir a folder of its own")
    made = _Runs(config, num_steps, tuple(kill_at), tuple(stages), root.absolute())
    start_s = time.monotonic()
    tell(f"straight, {stages[0]}, {num_steps} steps")
    straight = made.straight()
    straight_s = time.monotonic() - start_s
    compared = []
    for moment in MOMENTS:
        about = (len(kill_at) + 1) * straight_s
        tell(f"killed {moment} at {', '.join(map(str, kill_at))} (about {about:.0f} s)")
        compared.append(made.killed(moment, straight))
    where = " -> ".join(map(str, stages)) if len(set(stages)) > 1 else str(stages[0])
    is_same = all(run.is_same for run in compared)
    if folder is None and is_same:
        shutil.rmtree(root)
    kept = None if folder is None and is_same else root
    return Verified(config.name, where, tuple(compared), kept)


def _check(num_steps: int, kill_at: Sequence[int]) -> None:
    ordered = sorted(set(kill_at))
    if not kill_at or list(kill_at) != ordered or ordered[0] < 1 or ordered[-1] >= num_steps:
        raise ConfigError(
            f"--kill-at={','.join(map(str, kill_at))} with --steps={num_steps}: give steps from 1 "
            f"to {num_steps - 1}, each later than the one before"
        )


@dataclass(frozen=True)
class _Straight:
    batches: Mapping[int, Mapping[str, str]]
    losses: Mapping[int, float]
    start: Mapping[str, str]
    final: Mapping[str, str]


@dataclass(frozen=True)
class _Runs:
    """The runs of one verification."""

    config: Config
    num_steps: int
    kill_at: tuple[int, ...]
    stages: tuple[Stage, ...]
    root: Path

    def straight(self) -> _Straight:
        """The run that is not killed."""
        folder = self.root / "straight"
        notes = folder / "notes"
        self._phase(folder / "run", self.stages[0], Orders(str(notes))).run()
        return _Straight(
            read_batches(notes),
            _losses(folder / "run"),
            json.loads((notes / "restored.json").read_text(encoding="utf-8"))["leaves"],
            digests_of_checkpoint(folder / "run", self.num_steps)[1],
        )

    def killed(self, moment: str, straight: _Straight) -> Compared:
        """A run that is killed at each of the steps, beside it."""
        folder = self.root / moment.replace(" ", "-")
        run, killed_at, went_on_from, restored, notes = folder / "run", [], [], [], []
        for index, stage in enumerate(self.stages):
            step, leaves = _kept(run, straight)
            notes.append(folder / f"notes-{index}")
            kill = self.kill_at[index] if index < len(self.kill_at) else None
            orders = Orders(str(notes[-1]), kill, MOMENTS[moment])
            status = self._phase(run, stage, orders).run()
            _check_killed(status, moment, kill)
            if kill is not None:
                killed_at.append(max(read_batches(notes[-1])))
            if index:
                went_on_from.append(step)
            told = json.loads((notes[-1] / "restored.json").read_text(encoding="utf-8"))
            restored += different(told["leaves"], leaves)
        losses = _losses(run)
        apart = {s: _apart(losses.get(s), loss) for s, loss in straight.losses.items()}
        is_elsewhere = len(set(self.stages)) > 1
        _, final = digests_of_checkpoint(run, self.num_steps)
        return Compared(
            moment=moment,
            killed_at=tuple(killed_at),
            went_on_from=tuple(went_on_from),
            is_elsewhere=is_elsewhere,
            steps=self.num_steps,
            batches=tuple(_different_batches([read_batches(f) for f in notes], straight.batches)),
            leaves=len(straight.final),
            restored=tuple(sorted({*restored})),
            losses=tuple(s for s, a in apart.items() if a > (TOLERANCE if is_elsewhere else 0.0)),
            largest_difference=max(apart.values()),
            final=None if is_elsewhere else tuple(different(final, straight.final)),
        )

    def _phase(self, run: Path, stage: Stage, orders: Orders) -> Phase:
        path = Path(orders.folder) / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(to_dict(self._config_on(stage)), indent=2), encoding="utf-8")
        is_tuning = self.config.finetune.base is not None
        return Phase(path, run, is_tuning, orders, stage.hosts, self._devices())

    def _devices(self) -> int | None:
        """CPU devices in all; None where the machine's own are used."""
        meshes = [math.prod(stage.mesh) for stage in self.stages if stage.mesh is not None]
        hosts = math.lcm(*(stage.hosts for stage in self.stages))
        if not meshes and hosts == 1:
            return None
        devices = meshes[0] if meshes else hosts
        if devices % hosts:
            raise ConfigError(
                f"{devices} devices of --mesh cannot be shared out among --hosts evenly; give a "
                f"mesh of a multiple of {hosts}"
            )
        return devices

    def _config_on(self, stage: Stage) -> Config:
        config, mesh = self.config, self.config.mesh
        if stage.mesh is not None:
            data, fsdp, tensor = stage.mesh
            mesh = MeshConfig(data=data, fsdp=(fsdp,), tensor=tensor)
        every = max(1, self.kill_at[0] // 2)
        if config.checkpoint.every_steps is not None:
            every = min(every, config.checkpoint.every_steps)
        return dataclasses.replace(
            config,
            mesh=mesh,
            hosts=dataclasses.replace(
                config.hosts, **dict.fromkeys(("coordinator", "count", "index"))
            )
            if stage.hosts > 1 or self._devices() is not None
            else HostsConfig(),
            train=dataclasses.replace(
                config.train,
                steps=self.num_steps,
                log_every_steps=1,
                hooks=(*config.train.hooks, HOOK),
            ),
            checkpoint=dataclasses.replace(config.checkpoint, every_steps=every),
            sample=dataclasses.replace(config.sample, prompt=None),
        )


def _kept(run: Path, straight: _Straight) -> tuple[int, Mapping[str, str]]:
    """The step that a run will go on from, and the leaves that are on disk for it."""
    try:
        return digests_of_checkpoint(run)
    except CheckpointError:
        if any(run.glob("checkpoints/[0-9]*[0-9]")):
            raise
        return 0, straight.start


def _check_killed(status: int, moment: str, kill: int | None) -> None:
    if kill is None and is_killed(status):
        raise TrainingFailedError("the run was killed by something else; is memory short?")
    if kill is not None and not is_killed(status):
        raise TrainingFailedError(
            f"the run was to be killed {moment} at {kill} and ended before (status {status}); give "
            "more --steps, or a later --kill-at"
        )


def _losses(run: Path) -> dict[int, float]:
    lines = read_metrics(metrics_path(run))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _apart(found: float | None, wanted: float | None) -> float:
    """The relative difference; infinite where one is missing."""
    if found is None or wanted is None:
        return 0.0 if found is wanted else math.inf
    return abs(found - wanted) / abs(wanted) if found != wanted else 0.0


def _different_batches(
    stages: Sequence[Mapping[int, Mapping[str, str]]], wanted: Mapping[int, Mapping[str, str]]
) -> list[int]:
    """Steps of which any stage read another row, or of which no stage read all rows."""
    bad = []
    for step, rows in wanted.items():
        found = [stage[step] for stage in stages if step in stage]
        is_other = any(rows.get(row) != digest for part in found for row, digest in part.items())
        if is_other or not any(part.keys() == rows.keys() for part in found):
            bad.append(step)
    return bad
