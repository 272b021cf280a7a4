"""What happens beside training: each hook is told of events and changes nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, DataError, TrainingFailedError
from llmasos_jax.train.metrics import Speed

Values = Mapping[str, float]


@dataclass(frozen=True)
class RunInfo:
    """What a hook is told when a run starts.

    Attributes:
      config: the resolved config.
      workdir: the training folder.
      start_step: steps done before; 0 for a fresh run.
      num_parameters: weights of the model.
      speed: tokens per step, and what MFU is measured against.
      devices: what the run is on, as `parallel.mesh.describe` says it.
      num_moved: weights that the run moves; None for all.
    """

    config: Config
    workdir: Path
    start_step: int
    num_parameters: int
    speed: Speed
    devices: str
    num_moved: int | None = None

    def is_logged(self, step: int) -> bool:
        """Whether a step's values go to files: each `log_every_steps`, the first and the last."""
        every, last = self.config.train.log_every_steps, self.config.train.steps
        return step % every == 0 or step in (1, last)


class Hook:
    """Base of all hooks; override what you need. `train/metrics.py` lists the values.

    The loop calls `on_step` when a step's values have arrived, which is while the next step
    computes: a slow hook delays training only when it takes longer than a step.

    Example:
      Kept outside the package and named `"my_module:Loud"` in `config.train.hooks`:

      >>> class Loud(Hook):
      ...     def on_eval(self, step, values):
      ...         print(f"step {step}: perplexity {values['heldout_perplexity']:.1f}!")
      >>> Loud().on_eval(10, {"heldout_perplexity": 12.34})
      step 10: perplexity 12.3!
    """

    def on_start(self, run: RunInfo) -> None:
        """The state is there, the first step comes."""

    def on_state(self, step: int, state: Any) -> None:
        """The `TrainState` that the run starts with, or goes on from, after this many steps.

        It is the run's own: the first step takes its memory.
        """

    def on_batch(self, step: int, batch: Any, numbers: Sequence[int]) -> None:
        """This step's `Batch` of NumPy rows, those of this process, `numbers` in the global one."""

    def on_step(self, step: int, values: Values) -> None:
        """A step is done. Called for every step, in order."""

    def on_eval(self, step: int, values: Values) -> None:
        """Held-out text was scored after this step."""

    def on_sample(self, step: int, text: str) -> None:
        """The model wrote a text after this step."""

    def on_checkpoint(self, step: int) -> None:
        """This step is being saved."""

    def on_end(self, step: int, error: BaseException | None) -> None:
        """The run is over after this step, because of `error` if there is one."""


class Hooks(Hook):
    """Several hooks as one, told in order."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = tuple(hooks)

    def on_start(self, run: RunInfo) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_start(run)

    def on_state(self, step: int, state: Any) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_state(step, state)

    def on_batch(self, step: int, batch: Any, numbers: Sequence[int]) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_batch(step, batch, numbers)

    def on_step(self, step: int, values: Values) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_step(step, values)

    def on_eval(self, step: int, values: Values) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_eval(step, values)

    def on_sample(self, step: int, text: str) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_sample(step, text)

    def on_checkpoint(self, step: int) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_checkpoint(step)

    def on_end(self, step: int, error: BaseException | None) -> None:
        """See `Hook`."""
        for hook in self.hooks:
            hook.on_end(step, error)


def named_hooks(names: Sequence[str]) -> list[Hook]:
    """Makes the hooks of `config.train.hooks`.

    Args:
      names: each `"package.module:name"` of a `Hook`, or of what makes one when called.

    Raises:
      ConfigError: no such name, or it gives something else.
    """
    hooks = []
    for name in names:
        found: Any = resolve(name, {}, "train.hooks")
        hook = found() if callable(found) and not isinstance(found, Hook) else found
        if not isinstance(hook, Hook):
            raise ConfigError(
                f'train.hooks="{name}" gives a {type(hook).__name__}; it has to be a '
                "llmasos_jax.train.hooks.Hook, or to make one when called without arguments"
            )
        hooks.append(hook)
    return hooks


@contextlib.contextmanager
def _named_error(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingFailedError(
            f'cannot write to the training folder "{workdir}" ({error.strerror}); check the free '
            "space and the permissions: the same command goes on from the newest checkpoint"
        ) from error


def _close(file: Any, workdir: Path, error: BaseException | None) -> None:
    try:
        with _named_error(workdir):
            file.close()
    except TrainingFailedError:
        # What has ended the run is what is to be told.
        if error is None:
            raise


class MetricsFile(Hook):
    """`metrics.jsonl`: one JSON object per logged step and per evaluation.

    A run that goes on first drops the lines of steps after the one it goes on from, so that each
    step has one line however often the run was killed. A value that is not finite is null.
    """

    def on_start(self, run: RunInfo) -> None:
        """Opens the file behind the last line that still counts."""
        self._run = run
        path = metrics_path(run.workdir)
        kept = [line for line in read_metrics(path) if line["step"] <= run.start_step]
        self._evaluated = max((line["step"] for line in kept if _is_eval(line)), default=0)
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(part, path)
        self._file = path.open("a", encoding="utf-8")

    def on_step(self, step: int, values: Values) -> None:
        """Writes a line if the step is one that is logged, or is left out as a spike."""
        if self._run.is_logged(step) or values.get("spike"):
            self._write(step, values)

    def on_eval(self, step: int, values: Values) -> None:
        """Writes a line, unless it stands there from before."""
        if step > self._evaluated:
            self._write(step, values)

    def on_end(self, step: int, error: BaseException | None) -> None:
        """Closes the file."""
        _close(self._file, self._run.workdir, error)

    def _write(self, step: int, values: Values) -> None:
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        with _named_error(self._run.workdir):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()


def metrics_path(workdir: Path) -> Path:
    """Where a training folder keeps its metrics."""
    return workdir / "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`; a last line that a killed run left half written is dropped.

    Raises:
      DataError: the file is something else.
    """
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif text.endswith("\n"):
            raise DataError(
                f"{path}, line {number}: not a line of a run's metrics (an object with a step); "
                "move the file away, or take another workdir"
            )
    return lines


def _is_eval(line: Mapping[str, Any]) -> bool:
    return "heldout_loss" in line


class TensorBoard(Hook):
    """Event files in `tensorboard/`, in tensorboard's own format, without TensorFlow.

    Its `EventFileWriter` opens the file again for each event, in a thread whose errors nobody can
    catch; here the file stays open, and is written by the thread that trains.
    """

    def on_start(self, run: RunInfo) -> None:
        """Opens an event file; TensorBoard forgets what it knew of later steps."""
        # Here, not above: importing it takes a quarter of a second.
        # pyright sees no classes in generated protocol buffers.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._run, self._event, self._summary = run, Event, Summary
        folder = run.workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # Of two files the one that sorts last is the newer one.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("wb"))
        self._add(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=run.start_step + 1, session_log=start))

    def on_step(self, step: int, values: Values) -> None:
        """Writes the values if the step is one that is logged."""
        if self._run.is_logged(step):
            self._write(step, {f"train/{name}": value for name, value in values.items()})

    def on_eval(self, step: int, values: Values) -> None:
        """Writes the values."""
        self._write(step, {f"heldout/{k.removeprefix('heldout_')}": v for k, v in values.items()})

    def on_end(self, step: int, error: BaseException | None) -> None:
        """Closes the file."""
        _close(self._writer, self._run.workdir, error)

    def _write(self, step: int, values: Values) -> None:
        scalars = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        with _named_error(self._run.workdir):
            self._add(self._event(step=step, summary=self._summary(value=scalars)))
            self._writer.flush()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
