"""What a running sweep shows on standard error: a bar for each job, a line for each that ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from llmasos_jax.sweep.executors.executor import Ended
from llmasos_jax.sweep.grouping import Group
from llmasos_jax.sweep.places import Places


class Show:
    """Bars on a terminal, with the time that is left; lines elsewhere.

    Args:
      places: the sweep's folder.
      groups: all that will run.
    """

    def __init__(self, places: Places, groups: Sequence[Group]) -> None:
        self._places, self._groups = places, {group.name: group for group in groups}
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._num_ended = 0

    def __enter__(self) -> Show:
        points = sum(len(group.points) for group in self._groups.values())
        if points:
            programs = f"{len(self._groups)} program{'s' if len(self._groups) > 1 else ''}"
            self._say(f"{points} point{'s' if points > 1 else ''} to train in {programs}")
        if points and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def update(self, progress: Mapping[str, Mapping[str, Any]]) -> None:
        """Says how far the running jobs are."""
        if self._bar is None:
            return
        for name, values in progress.items():
            group = self._groups[name]
            if name not in self._tasks:
                total = group.config.train.steps
                self._tasks[name] = self._bar.add_task(self._title(group), total=total, values="")
            if values:
                loss = values["loss"]
                diverged = len(group.points) - values["running"]
                told = "" if loss is None else f"best loss {loss:.3f}"
                told += f", {diverged} diverged" if diverged else ""
                self._bar.update(self._tasks[name], completed=values["step"], values=told)

    def ended(self, group: Group, ended: Ended) -> None:
        """Says how a job ended."""
        self._num_ended += 1
        how = {0: "done", 75: "saved"}.get(ended.status)
        if how is None:
            log = self._places.group(group.name) / "log.txt"
            how = f"failed ({ended.why or f'status {ended.status}'}); see {log}"
        self._say(f"[{self._num_ended}/{len(self._groups)}] {self._title(group)}: {how}")
        if group.name in self._tasks:
            self._bar.remove_task(self._tasks[group.name])

    def _title(self, group: Group) -> str:
        more = f" and {len(group.points) - 1} more" if group.is_shared else ""
        return f"{group.points[0].name}{more}"

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
