"""Runs the command line as a user does: a process of its own, elsewhere, with its own caches."""

import os
import subprocess
import sys
from pathlib import Path

# What conftest.py sets for the tests' own process is not part of a user's machine.
_OURS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a machine with one CPU device, whose caches are under `home`."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return kept | {"XDG_CACHE_HOME": str(home / "cache"), "JAX_PLATFORMS": "cpu"} | more


def llmasos(
    *words: object, home: Path, status: int = 0, python: str = sys.executable, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs `llmasos words...` in `home` and checks its exit status."""
    done = subprocess.run(
        [python, "-m", "llmasos", *map(str, words)],
        cwd=home,
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, f"status {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done
