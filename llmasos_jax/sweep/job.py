"""One job of a sweep: a group of points, trained in a process of its own.

Every executor starts jobs by the same command, with the group's folder; what the job needs is in
that folder's group.json. It says how far it is in progress.json there, and in its exit status how
it ended: that of `llmasos train`.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.config.build import from_dict, to_dict
from llmasos_jax.config.files import cache_folder
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import LLMasOSError, TrainingFailedError
from llmasos_jax.parallel.compile_cache import use_compile_cache
from llmasos_jax.sweep.grouping import Group
from llmasos_jax.sweep.places import Places, read_json, write_json
from llmasos_jax.sweep.points import Point

_MODULE = "llmasos_jax.sweep.job"
_GROUP, _PROGRESS = "group.json", "progress.json"
_TOLD_EVERY_S = 0.5


def write_job(places: Places, group: Group) -> None:
    """Keeps what a job needs in the group's folder."""
    points = [
        {
            "name": point.name,
            "setting": point.setting,
            "overrides": dict(point.overrides),
            "config": to_dict(point.config),
        }
        for point in group.points
    ]
    write_json(places.group(group.name) / _GROUP, {"points": points})


def read_job(places: Places, name: str) -> Group:
    """What `write_job` kept."""
    kept = read_json(places.group(name) / _GROUP) or {"points": []}
    points = [
        Point(p["name"], p["setting"], p["overrides"], from_dict(p["config"]))
        for p in kept["points"]
    ]
    return Group(name, tuple(points))


def read_progress(places: Places, name: str) -> dict[str, Any]:
    """How far a job is: "step", "steps", "loss" (the lowest), "running" (runs that go on)."""
    return read_json(places.group(name) / _PROGRESS) or {}


def command(places: Places, name: str, *, parent: int | None = None) -> list[str]:
    """What starts a job, on any machine that sees the folder."""
    words = [sys.executable, "-m", _MODULE, str(places.root.absolute()), name]
    return words if parent is None else [*words, str(parent)]


def main(words: Sequence[str]) -> int:
    """Trains a group; the exit status.

    Args:
      words: the sweep's folder, the group's name and, if there is one, the process whose end is
        this one's.
    """
    # Slurm sends the signal that is for submitit's process to all of a job's.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    root, name, *parent = words
    if parent:
        threading.Thread(target=_follow, args=(int(parent[0]),), daemon=True).start()
    places = Places(Path(root))
    try:
        _train(places, read_job(places, name))
    except LLMasOSError as error:
        print(f"llmasos: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _train(places: Places, group: Group) -> None:
    progress, cache = _Progress(places, group), cache_folder() / "data"
    if group.is_shared:
        use_cores(group.config)
        from llmasos_jax.sweep.together import train_together

        use_compile_cache()
        train_together(group, places, cache, progress)
        return
    from llmasos_jax.finetune.resolve import resolve
    from llmasos_jax.train.run import run

    use_compile_cache()
    config, base = group.config, None
    if config.finetune.base is not None:
        config, base = resolve(config)
    folder = places.point(group.points[0].name)
    try:
        run(config, folder, hooks=[progress.hook()], cache=cache, base=base)
    except TrainingFailedError as error:
        if config.hosts.count not in (None, 1):
            raise  # a host may be lost
        # It would diverge again: that is its result, as of one that trains beside others.
        print(f"llmasos: {error}", file=sys.stderr)
        values = {"step": progress.last_step + 1, "why": str(error)}
        write_json(places.diverged(group.points[0].name), values)


def use_cores(config: Config) -> None:
    """Makes a device of each core: on a CPU replicas that share none are twice as fast.

    An XLA_FLAGS that says how many there are stays.
    """
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        mesh = config.mesh
        one = math.prod((*mesh.fsdp, mesh.tensor, mesh.context, mesh.expert, mesh.pipeline))
        one *= mesh.data or 1
        cores = len(os.sched_getaffinity(0))
        jax.config.update("jax_num_cpu_devices", max(one, cores - cores % one))


class _Progress:
    """Writes how far the job is, twice a second at most."""

    def __init__(self, places: Places, group: Group) -> None:
        self._path = places.group(group.name) / _PROGRESS
        self._steps, self._told_s = group.config.train.steps, 0.0
        self.last_step = 0  # that ended well

    def __call__(self, step: int, losses: Sequence[float]) -> None:
        now_s = time.monotonic()
        if step < self._steps and now_s - self._told_s < _TOLD_EVERY_S:
            return
        self._told_s = now_s
        finite = [loss for loss in losses if math.isfinite(loss)]
        write_json(
            self._path,
            {
                "step": step,
                "steps": self._steps,
                "loss": min(finite, default=None),
                "running": len(finite),
            },
        )

    def hook(self) -> Any:
        """The same for a run of its own."""
        from llmasos_jax.train.hooks import Hook

        tell = self

        class Told(Hook):
            def on_step(self, step: int, values: Any) -> None:
                tell(step, [values["loss"]])

            def on_end(self, step: int, error: BaseException | None) -> None:
                tell.last_step = step

        return Told()


def _follow(parent: int) -> None:
    """Asks this process to stop once its parent is gone: nobody would be left to do so."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
