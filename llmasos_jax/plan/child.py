"""Compiling in another process, with a line that says how far it is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmasos_jax import errors
from llmasos_jax.config.build import to_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import LLMasOSError, TrainingFailedError
from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.figures import Figures, from_json

_ROOT = Path(__file__).resolve().parent.parent.parent


class PlanFailedError(TrainingFailedError):
    """The compiler crashed, or said something that is neither a program nor out of memory."""


def compile_in_child(cfg: Config, topology: Topology, say: Callable[[str], None]) -> Figures:
    """Compiles a step in a process of its own.

    Args:
      cfg: the run.
      topology: of the pod.
      say: is told each stage.

    Raises:
      ConfigError, MissingExtraError: as `compile_figures`.
      PlanFailedError: the compiler crashed.
    """
    shape = "x".join(map(str, topology.shape))
    request = {
        "config": to_dict(cfg),
        "topology": f"{topology.chip.name}:{shape}",
        "slices": topology.slices,
    }
    with tempfile.TemporaryDirectory(prefix="llmasos-plan-") as folder:
        out, log = Path(folder, "answer.json"), Path(folder, "log")
        with log.open("wb") as errors_file:
            child = subprocess.Popen(
                [sys.executable, "-m", "llmasos_jax.plan.worker", str(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors_file,
                env=_environment(),
                text=True,
            )
            try:
                _talk(child, json.dumps(request), say)
            except BaseException:
                child.kill()
                raise
            finally:
                child.wait()
        if not out.exists():
            raise PlanFailedError(_trouble(child.returncode, log))
        answer = json.loads(out.read_text(encoding="utf-8"))
    if "error" in answer:
        kind = getattr(errors, answer["kind"], LLMasOSError)
        raise kind(answer["error"])
    return from_json(answer["figures"])


def _talk(child: subprocess.Popen[str], request: str, say: Callable[[str], None]) -> None:
    if child.stdin is None or child.stdout is None:
        return
    # Where the child is gone already, what it left behind says why.
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(request)
        child.stdin.close()
    for line in child.stdout:
        say(line.strip())


def _environment() -> dict[str, str]:
    # This process's path, so that a config's own parts are found there too.
    paths = [str(_ROOT), *filter(None, sys.path)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }


def _trouble(status: int | None, log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip()[:300] if lines else "it said nothing"
    return (
        f"the compiler's process ended with status {status}: {last}; another mesh, remat or batch "
        "may compile"
    )


class Stage:
    """A line on standard error with what is being done and for how long.

    On a terminal it is one line that counts; elsewhere a line when compiling begins.

    Args:
      label: what it is about.
      lines: elsewhere, a line for all that is said but the stages of one compilation.
    """

    def __init__(self, label: str, *, lines: bool = False) -> None:
        self._label, self._lines = label, lines
        self._bar: Any = None
        self._start_s = time.monotonic()

    def __call__(self, what: str) -> None:
        """Says that `what` begins."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = _spinner()
                self._bar.start()
                self._task = self._bar.add_task(self._label, total=None)
            self._bar.update(self._task, description=f"{self._label}: {what}")
        elif self._lines:
            if not what.endswith(_STAGES):
                self._print(what)
        elif what == "compiling":
            self._print(f"{what} (minutes for a large model)")

    def close(self) -> None:
        """Takes the line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, what: str) -> None:
        seconds = time.monotonic() - self._start_s
        print(f"{self._label}, {seconds:.0f} s: {what}", file=sys.stderr, flush=True)


_STAGES = ("describing the pod", "tracing", "compiling", "reading the program")


def _spinner() -> Any:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
