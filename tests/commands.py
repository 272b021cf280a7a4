"""Runs the command line as a user does: a process of its own, elsewhere, with its own caches."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What a user's machine does not have: conftest.py's settings for the tests' own process, and a path
# that would find this checkout.
_OURS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "PYTHONPATH",
    "XLA_FLAGS",
)


def environment(home: Path, *, own: bool = False) -> dict[str, str]:
    """The variables of a user's machine; this checkout is found unless it has its `own`."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    path = {} if own else {"PYTHONPATH": str(ROOT)}
    return kept | {"XDG_CACHE_HOME": str(home / "cache"), "JAX_PLATFORMS": "cpu"} | path


def run(
    *words: object, home: Path, status: int = 0, python: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python words...` in `home`, with one CPU device, and checks its exit status.

    Args:
      words: what follows `python`.
      home: the folder to run in; caches go to `home/cache`.
      status: the exit status to expect.
      python: an interpreter that has the package; None takes this one with this checkout.
    """
    done = subprocess.run(
        [python or sys.executable, *map(str, words)],
        cwd=home,
        env=environment(home, own=python is not None),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, f"status {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def llmasos(*words: object, home: Path, **options) -> subprocess.CompletedProcess[str]:
    """Runs `llmasos words...`; the options are those of `run`."""
    return run("-m", "llmasos", *words, home=home, **options)
