"""Runs a program in the sandbox, and says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.sandbox.limits import Limits

_LAUNCHER = Path(__file__).with_name("launcher.py")
_KEPT = 64 * 1024  # bytes of what a program printed
_GRACE_S = 30.0  # for the walls themselves, on a busy machine


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
      status: its exit status; minus a signal's number if one killed it; None past the time.
      output: what it printed on both streams, the last 64 KiB.
      seconds: of wall time, walls included.
    """

    status: int | None
    output: str
    seconds: float

    @property
    def timed_out(self) -> bool:
        """Whether it was stopped at its time."""
        return self.status is None


def run_python(code: str, limits: Limits | None = None) -> Outcome:
    """Runs Python code that nobody has read.

    It runs as another user (where this process is root; else in a user namespace, without rights),
    in namespaces of its own: no network, no other processes, the system's libraries to read and one
    folder, `/box`, to write, which goes when it ends. The standard library alone is there to
    import. Linux on x86-64 and arm64, as root or where users may make namespaces; elsewhere it
    refuses.

    Args:
      code: of the program.
      limits: what it may use; None is `Limits()`.

    Raises:
      EvaluationError: this platform cannot build one of the walls; nothing was run.
    """
    limits = Limits() if limits is None else limits
    with (
        tempfile.TemporaryDirectory(prefix="llmasos-box-") as folder,
        tempfile.TemporaryFile() as out,
    ):
        spec = {
            **asdict(limits),
            "code": code,
            "root": os.path.realpath(folder),
            "readable": [os.path.realpath(sys.base_prefix)],
            "python": _python(),
            "output": out.fileno(),
        }
        answer = _launch(spec, limits.seconds + _GRACE_S)
        if "refused" in answer:
            raise EvaluationError(
                f"no sandbox on this platform ({answer['refused']}), so the program was not run; "
                "run as root or where users may make namespaces, on Linux"
            )
        size = out.seek(0, os.SEEK_END)
        out.seek(max(0, size - _KEPT))
        text = out.read().decode("utf-8", "replace")
    status = None if answer.get("timed_out") else os.waitstatus_to_exitcode(answer["status"])
    return Outcome(status, text, answer["seconds"])


def _launch(spec: dict, timeout_s: float) -> dict:
    if sys.platform != "linux":
        return {"refused": f"{sys.platform} has no namespaces"}
    words = [sys.executable, "-I", "-S", "-B", str(_LAUNCHER)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=[spec["output"]], process_group=0
    ) as process:
        try:
            said, trouble = process.communicate(json.dumps(spec).encode(), timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return {"refused": f"the launcher did not end within {timeout_s:.0f} s"}
            raise
    if process.returncode != 0 or not said:
        last = trouble.decode("utf-8", "replace").strip().splitlines()[-1:]
        return {"refused": f"the launcher failed: {' '.join(last)}"}
    return json.loads(said)


def _python() -> str:
    """The interpreter itself: a virtual environment's is a link, whose folder is not shown."""
    return os.path.realpath(sys.executable)
