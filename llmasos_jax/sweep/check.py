"""Builds the step of each group of a sweep on the devices that its jobs will see.

In processes of their own, as the jobs will be: this one may not take an accelerator from them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmasos_jax.config.devices import MeshConfig
from llmasos_jax.errors import ConfigError, LLMasOSError, did_you_mean
from llmasos_jax.sweep.grouping import Group
from llmasos_jax.sweep.job import read_job, use_cores, write_job
from llmasos_jax.sweep.places import Places

if TYPE_CHECKING:
    from llmasos_jax.train.step import Trainer

_MODULE = "llmasos_jax.sweep.check"


def check_on_devices(groups: Sequence[Group], metric: str) -> None:
    """Refuses a group whose step cannot be built on the devices of this machine.

    Args:
      groups: of a sweep.
      metric: by which its points are judged.

    Raises:
      ConfigError: the first that does not fit, or does not report the metric; the message has a
        point's name.
    """
    cohorts: dict[tuple[bool, MeshConfig], list[Group]] = {}
    for group in groups:
        cohorts.setdefault((group.is_shared, group.config.mesh), []).append(group)
    for cohort in cohorts.values():
        with tempfile.TemporaryDirectory(prefix="llmasos-sweep-") as folder:
            for group in cohort:
                write_job(Places(Path(folder)), group)
            names = [group.name for group in cohort]
            words = [sys.executable, "-m", _MODULE, folder, metric, *names]
            done = subprocess.run(
                words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
            )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ConfigError(lines[-1])


def main(words: Sequence[str]) -> int:
    """Checks groups of one mesh; the exit status.

    Args:
      words: a sweep's folder, its metric, and names of groups in it.
    """
    places, metric = Places(Path(words[0])), words[1]
    groups = [read_job(places, name) for name in words[2:]]
    if groups[0].is_shared:
        use_cores(groups[0].config)
    for group in groups:
        try:
            _check(group, metric)
        except LLMasOSError as error:
            others = len(group.points) - 1
            more = f" (and {others} more of its shapes)" if others else ""
            print(f'point "{group.points[0].name}"{more}: {error}', file=sys.stderr)
            return error.exit_status
    return 0


def _check(group: Group, metric: str) -> None:
    config = group.config
    if config.finetune.base is not None:
        return  # its model is known once the base is opened
    from llmasos_jax.parallel.mesh import make_mesh
    from llmasos_jax.sweep.replicas import lay_out
    from llmasos_jax.train.step import make_trainer

    mesh = lay_out(config, 2)[0] if group.is_shared else make_mesh(config.mesh)
    trainer = make_trainer(config, mesh)
    if metric != "heldout_loss" or config.train.eval_every_steps is None:
        _check_metric(trainer, metric)


def _check_metric(trainer: Trainer, metric: str) -> None:
    """Refuses a metric that the run will not report."""
    import jax
    import numpy as np

    from llmasos_jax.train.metrics import SPEEDS, heldout_values, step_values

    def reported(values: Any, *program: Any) -> list[str]:
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(*program))
        return [*values(zeros, trainer.cfg.objective.name)]

    state, batch = trainer.abstract_state, trainer.abstract_batch
    known = [*SPEEDS]
    known += reported(step_values, lambda *given: trainer.next_state(*given)[1], state, batch)
    if trainer.cfg.train.eval_every_steps is not None:
        known += reported(heldout_values, trainer.held_out_sums, state.params, batch)
    if metric not in known:
        raise ConfigError(
            f'METRIC="{metric}" is not reported by this run{did_you_mean(metric, known)}'
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
