"""Runs a sweep in a folder: what is done stays done, what is left is trained, then the report."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmasos_jax.config.build import from_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, LLMasOSError, PreemptedError
from llmasos_jax.sweep.check import check_on_devices
from llmasos_jax.sweep.executors.executor import Ended, Executor, Job
from llmasos_jax.sweep.executors.local import LocalExecutor
from llmasos_jax.sweep.executors.slurm import SlurmExecutor, check_left
from llmasos_jax.sweep.grouping import Group, compilation_key, grouped
from llmasos_jax.sweep.job import read_job, read_progress, write_job
from llmasos_jax.sweep.places import Places, write_json
from llmasos_jax.sweep.points import Point, Sweep, described, read_sweep
from llmasos_jax.sweep.report.write import SweepReport, write_report
from llmasos_jax.sweep.show import Show
from llmasos_jax.train.preemption import StopRequest
from llmasos_jax.train.result import read_result
from llmasos_jax.train.workdir import check_same_run, lock, newest_step

MOST_TOGETHER = 64
_POLLED_EVERY_S = 0.2


def run_sweep(
    path: Path,
    workdir: Path,
    *,
    overrides: Mapping[str, str] | None = None,
    executor: Executor | None = None,
    together: int = MOST_TOGETHER,
) -> SweepReport:
    """Trains a sweep's points, or goes on where its folder stopped.

    A point that is done, or has diverged, is not trained again; one whose job failed is. Points may
    be added to the file later.

    Args:
      path: of the sweep's file.
      workdir: the sweep's folder; made if absent.
      overrides: of the config that the sweep is over, as texts by path.
      executor: where jobs run; None takes processes of this machine, one after the other.
      together: points that share a program at most.

    Returns:
      The report; `report.html` in the folder shows it.

    Raises:
      ConfigError: a point is wrong, before anything starts; the message has its name.
      PreemptedError: Ctrl-C or SIGTERM; all jobs have saved, the same call goes on.
    """
    if together < 1:
        raise ConfigError(f"together={together}: a program trains 1 point at least")
    sweep, places = read_sweep(path, overrides), Places(workdir)
    with contextlib.ExitStack() as stack:
        is_there = workdir.is_dir()
        if is_there:
            lock(workdir, stack)
        _check_folder(sweep, places)
        left = [point for point in sweep.points if not is_over(places, point)]
        groups = list(_groups(places, left, sweep.points, together))
        executor = executor or LocalExecutor()
        taken_up = [group.name for group in groups] if isinstance(executor, SlurmExecutor) else []
        check_left(places, taken_up)
        if isinstance(executor, LocalExecutor):
            check_on_devices(groups, sweep.metric)
        write_json(places.sweep, described(sweep))
        if not is_there:
            lock(workdir, stack)
        for group in groups:
            write_job(places, group)
        try:
            _run_jobs(executor, places, groups)
        finally:
            executor.close()
        return write_report(places)


def is_over(places: Places, point: Point) -> bool:
    """Whether a point is done, or has diverged."""
    if places.diverged(point.name).exists():
        return True
    result = read_result(places.point(point.name))
    return result is not None and result.step >= point.config.train.steps


def _check_folder(sweep: Sweep, places: Places) -> None:
    """Refuses a folder in which a point of the same name was another run."""
    for point in sweep.points:
        folder = places.point(point.name)
        if not folder.exists():
            continue
        try:
            newest_step(folder, point.config)
        except LLMasOSError as error:
            raise ConfigError(f'point "{point.name}": {error}') from error
        result = read_result(folder)
        if result is not None and result.step != point.config.train.steps:
            raise ConfigError(
                f'point "{point.name}" has done {result.step:,} steps in {folder}, and now has '
                f"train.steps={point.config.train.steps:,}; take another --workdir (one run alone "
                "goes on with `llmasos train`)"
            )
        if places.diverged(point.name).exists():
            before = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            _check_same(point, from_dict(before))
    points = {point.name: point for point in sweep.points}
    for folder in _begun(places):
        for before in read_job(places, folder.name).points:
            if before.name in points:
                _check_same(points[before.name], before.config)


def _begun(places: Places) -> list[Path]:
    """Folders of groups that have kept a state."""
    return [f for f in sorted(places.root.glob("groups/*")) if any(f.glob("checkpoints/*"))]


def _check_same(point: Point, before: Config) -> None:
    """Refuses to go on with other numbers than those of the state that is kept."""
    try:
        check_same_run(before, point.config)
    except ConfigError as error:
        raise ConfigError(f'point "{point.name}": {error}') from error
    now = point.config.train.steps
    if before.train.steps != now:
        raise ConfigError(
            f'point "{point.name}" was begun for train.steps={before.train.steps:,}, and now has '
            f"{now:,}; undo this, or take another --workdir"
        )


def _groups(
    places: Places, left: Sequence[Point], points: Sequence[Point], together: int
) -> Iterator[Group]:
    """Groups that were begun, as they were; then groups of the other points that are left."""
    known = {point.name: point for point in points}
    open_names = {point.name for point in left}
    for folder in _begun(places):
        names = [point.name for point in read_job(places, folder.name).points]
        if all(n in known for n in names) and open_names & {*names}:
            group = Group(folder.name, tuple(known[n] for n in names))
            # (Logging, evaluation, hooks and mesh may be others now, but the same ones for all.)
            if len({compilation_key(point.config) for point in group.points}) == 1:
                open_names -= {*names}
                yield group
    yield from grouped([point for point in left if point.name in open_names], together)


def _run_jobs(executor: Executor, places: Places, groups: Sequence[Group]) -> None:
    """Starts jobs as room is made, until all have ended."""
    waiting = list(groups)
    running: list[tuple[Group, Job]] = []
    is_stopping = False
    with _stopped_in_the_end(running), StopRequest() as stop, Show(places, groups) as show:
        while waiting or running:
            while waiting and len(running) < executor.at_once and not stop.name:
                group = waiting.pop(0)
                if all(is_over(places, point) for point in group.points):
                    show.ended(group, Ended(0))  # by a job of an earlier call, meanwhile
                    continue
                for point in group.points:
                    places.failed(point.name).unlink(missing_ok=True)
                running.append((group, executor.start(places, group.name)))
            if stop.name and not is_stopping:
                # Once: a second signal would end a job before it has saved.
                is_stopping = True
                waiting.clear()
                for _, job in running:
                    job.stop()
            still = []
            for group, job in running:
                ended = job.poll()
                if ended is None:
                    still.append((group, job))
                else:
                    if is_stopping and ended.status == -signal.SIGTERM:
                        # It had not begun to listen: what it kept before is there.
                        ended = Ended(PreemptedError.exit_status)
                    _note_end(places, group, ended)
                    show.ended(group, ended)
            running[:] = still
            show.update({g.name: read_progress(places, g.name) for g, _ in running})
            time.sleep(_POLLED_EVERY_S)
        if stop.name:
            raise PreemptedError(f"{stop.name}: all jobs have saved; the same command goes on")


@contextlib.contextmanager
def _stopped_in_the_end(running: Sequence[tuple[Group, Job]]) -> Iterator[None]:
    """Leaves no job behind that nobody waits for: in a notebook the process lives on."""
    try:
        yield
    except BaseException:
        for _, job in running:
            job.stop()
        raise


def _note_end(places: Places, group: Group, ended: Ended) -> None:
    """Says of the points that a failed job has not done why, and where its log is."""
    if ended.status in (0, PreemptedError.exit_status):
        return
    log = places.group(group.name) / "log.txt"
    told = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    why = ended.why or (told[0] if told else f"exit status {ended.status}")
    for point in group.points:
        if not is_over(places, point):
            values = {"why": why, "log": str(log.relative_to(places.root))}
            write_json(places.failed(point.name), values)
