"""The numbers of a run that its step need not be compiled for: learning rate, decay, noise.

A run of its own has them as Python's numbers, constants of its program. Where several runs share
one program (`sweep/replicas.py`) those that differ are arguments of it, and stand here as arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmasos_jax.config.schema import Config, OptimConfig

# Paths in the config.
NUMBERS = (
    "optim.learning_rate",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.beta1",
    "optim.beta2",
    "optim.eps",
    "optim.momentum",
    "optim.clip_norm",
    "train.dropout_rate",
    "train.init_std",
    "objective.label_smoothing",
)


@dataclass(frozen=True)
class Numbers:
    """What the step reads of them.

    Attributes:
      optim: of the config; some of its numbers may be float32 scalars of a trace.
      dropout_rate: as in `TrainConfig`, or such a scalar.
      init_std: as in `TrainConfig`, or such a scalar.
      label_smoothing: as in `ObjectiveConfig`, or such a scalar.
    """

    optim: OptimConfig
    dropout_rate: Any
    init_std: Any
    label_smoothing: Any

    def replace(self, values: Mapping[str, Any]) -> Numbers:
        """These numbers with others in their places.

        Args:
          values: by paths of `NUMBERS`.

        Example:
          >>> from llmasos_jax.config.build import load_config
          >>> numbers = numbers_of(load_config("tiny"))
          >>> numbers.replace({"optim.learning_rate": 0.5}).optim.learning_rate
          0.5
        """
        optim = {k.removeprefix("optim."): v for k, v in values.items() if k.startswith("optim.")}
        rest = {k.partition(".")[2]: v for k, v in values.items() if not k.startswith("optim.")}
        return dataclasses.replace(self, optim=dataclasses.replace(self.optim, **optim), **rest)


def numbers_of(cfg: Config) -> Numbers:
    """Those of a config."""
    return Numbers(
        cfg.optim, cfg.train.dropout_rate, cfg.train.init_std, cfg.objective.label_smoothing
    )


def is_zero(number: Any) -> bool:
    """Whether a number is Python's zero, which is left out of a program; an array never is.

    Example:
      >>> import jax.numpy as jnp
      >>> is_zero(0.0), is_zero(0.1), is_zero(jnp.zeros(()))
      (True, False, False)
    """
    return isinstance(number, int | float) and number == 0
