"""A run whose disk fails: one clear line, the last good checkpoint intact, and the run goes on.

Real processes of `llmasos train`, and real faults: a small file system that fills up, a folder that
becomes read-only, one that is moved away, one that may no longer be written (in a process without
root's right to ignore that), two runs in one folder, and a run ended by SIGKILL that held it. After
each fault is mended the same command trains to the end, and comes to the weights of the run that
nothing happened to. Writes disk_faults.json beside this file. Linux, as root (it mounts).

    python experiments/acceptance/disk_faults.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from commands import environment  # noqa: E402
from host_runs import prepare  # noqa: E402

from llmasos_jax.checkpoint.doctor import examine  # noqa: E402
from llmasos_jax.train.hooks import Hook  # noqa: E402
from llmasos_jax.verify.digests import digests_of_checkpoint  # noqa: E402

STEPS, EVERY = 30, 3
# So that the permissions of a folder bind root as well.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-sys_admin"]


class Runs:
    """Runs of one config in folders of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = prepare(home / "config")

    def start(self, workdir: Path, *, before: list[str] | None = None) -> subprocess.Popen[str]:
        """Starts `llmasos train`."""
        words = [*(before or []), sys.executable, "-m", "llmasos", "train"]
        words += [f"--config={self.config}"]
        words += [f"--workdir={workdir}", f"--config.train.steps={STEPS}"]
        words += [f"--config.checkpoint.every_steps={EVERY}", "--config.checkpoint.keep=2"]
        words += ["--config.train.hooks=('disk_faults:Slowly',)"]
        variables = environment(self.home)
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE), str(ROOT / "tests")])
        variables["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        return subprocess.Popen(
            words,
            cwd=self.home,
            env=variables,
            stderr=subprocess.PIPE,
            text=True,
            stdout=subprocess.DEVNULL,
        )


class Slowly(Hook):
    """A hook that gives a fault time to fall between two saves."""

    def on_batch(self, step: int, batch: Any, numbers: Sequence[int]) -> None:
        """See `Hook`."""
        time.sleep(0.15)


def command(*words: object) -> None:
    """Runs a program that has to succeed."""
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """The exit status of a run, and the lines that say why it ended."""
    _, said = process.communicate(timeout=300)
    if "Traceback" in said:
        raise SystemExit(f"a traceback:\n{said}")
    return process.returncode, [line for line in said.splitlines() if line.startswith("llmasos:")]


def wait_for(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until a step folder is there."""
    until = time.monotonic() + 120
    while not folder.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"no {folder}: {ended(process)}")
        time.sleep(0.02)


def fault(
    runs: Runs, workdir: Path, cause: Callable[[Path], object], mend: Callable[[Path], object]
) -> dict:
    """A run that a fault befalls after its first checkpoint."""
    checkpoints = workdir / "checkpoints"
    process = runs.start(workdir, before=UNPRIVILEGED)
    wait_for(process, checkpoints / str(EVERY))
    cause(checkpoints)
    status, lines = ended(process)
    mend(checkpoints)
    return finish(runs, workdir, status, lines)


def finish(runs: Runs, workdir: Path, status: int, lines: list[str]) -> dict:
    """Looks at what is left, and lets the run go on."""
    left = examine(workdir)
    found = {"status": status, "said": [line.replace(str(runs.home), "~") for line in lines]}
    found |= {"left": left.goes_on_from, "is_left_sound": left.is_sound}
    again, _ = ended(runs.start(workdir))
    found |= {"went_on": again, "leaves": digests_of_checkpoint(workdir, STEPS)[1]}
    return found


def full(runs: Runs, workdir: Path) -> dict:
    """A file system with room for two checkpoints and a half."""
    workdir.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", workdir)
    try:
        status, lines = ended(runs.start(workdir / "run"))
        command("mount", "-o", "remount,size=20m", workdir)
        return finish(runs, workdir / "run", status, lines)
    finally:
        command("umount", workdir)


def read_only(runs: Runs, workdir: Path) -> dict:
    """The checkpoints' folder is mounted read-only."""

    def cause(folder: Path) -> None:
        command("mount", "--bind", folder, folder)
        command("mount", "-o", "remount,bind,ro", folder)

    return fault(runs, workdir, cause, lambda folder: command("umount", folder))


def vanished(runs: Runs, workdir: Path) -> dict:
    """The training folder is moved away."""
    away = workdir.with_name("away")
    return fault(
        runs,
        workdir,
        lambda folder: folder.parent.rename(away),
        lambda folder: (shutil.rmtree(folder.parent, ignore_errors=True), away.rename(workdir)),
    )


def forbidden(runs: Runs, workdir: Path) -> dict:
    """The checkpoints' folder may not be written any more."""
    return fault(runs, workdir, lambda f: f.chmod(0o500), lambda f: f.chmod(0o755))


def two_runs(runs: Runs, workdir: Path) -> dict:
    """A second run in the folder; then the first is killed, and a third one goes on."""
    first = runs.start(workdir)
    wait_for(first, workdir / "checkpoints" / str(EVERY))
    status, lines = ended(runs.start(workdir))
    named = f"process {first.pid} on" in lines[0] and "since 2" in lines[0]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    return finish(runs, workdir, status, lines) | {"is_named": named}


CASES = (full, read_only, vanished, forbidden, two_runs)


def run_all(home: Path) -> dict[str, dict]:
    """Every fault, beside a run without one."""
    runs = Runs(home)
    status, lines = ended(runs.start(home / "straight"))
    if status:
        raise SystemExit(f"the run without a fault: {lines}")
    wanted = digests_of_checkpoint(home / "straight", STEPS)[1]
    found = {}
    for case in CASES:
        seen = case(runs, home / case.__name__)
        seen["is_same_in_the_end"] = seen.pop("leaves") == wanted
        found[case.__name__] = seen
        print(json.dumps({case.__name__: seen}), flush=True)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seen = run_all(Path(folder))
    (HERE / "disk_faults.json").write_text(json.dumps(seen, indent=2) + "\n")
