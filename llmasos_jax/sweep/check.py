"""Builds the step of each group of a sweep on the devices that its jobs will see.

In processes of their own, as the jobs will be: this one may not take an accelerator from them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmasos_jax.config.devices import MeshConfig
from llmasos_jax.errors import ConfigError, LLMasOSError
from llmasos_jax.sweep.grouping import Group
from llmasos_jax.sweep.job import read_job, use_cores, write_job
from llmasos_jax.sweep.places import Places

_MODULE = "llmasos_jax.sweep.check"


def check_on_devices(groups: Sequence[Group]) -> None:
    """Refuses a group whose step cannot be built on the devices of this machine.

    Raises:
      ConfigError: the first that does not fit; the message has a point's name.
    """
    cohorts: dict[tuple[bool, MeshConfig], list[Group]] = {}
    for group in groups:
        cohorts.setdefault((group.is_shared, group.config.mesh), []).append(group)
    for cohort in cohorts.values():
        with tempfile.TemporaryDirectory(prefix="llmasos-sweep-") as folder:
            for group in cohort:
                write_job(Places(Path(folder)), group)
            words = [sys.executable, "-m", _MODULE, folder, *(group.name for group in cohort)]
            done = subprocess.run(
                words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
            )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ConfigError(lines[-1])


def main(words: Sequence[str]) -> int:
    """Checks groups of one mesh; the exit status.

    Args:
      words: a sweep's folder, and names of groups in it.
    """
    places = Places(Path(words[0]))
    groups = [read_job(places, name) for name in words[1:]]
    if groups[0].is_shared:
        use_cores(groups[0].config)
    for group in groups:
        try:
            _check(group)
        except LLMasOSError as error:
            others = len(group.points) - 1
            more = f" (and {others} more of its shapes)" if others else ""
            print(f'point "{group.points[0].name}"{more}: {error}', file=sys.stderr)
            return error.exit_status
    return 0


def _check(group: Group) -> None:
    config = group.config
    if config.finetune.base is not None:
        return  # its model is known once the base is opened
    from llmasos_jax.parallel.mesh import make_mesh
    from llmasos_jax.sweep.replicas import lay_out
    from llmasos_jax.train.step import make_trainer

    make_trainer(config, lay_out(config, 2)[0] if group.is_shared else make_mesh(config.mesh))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
