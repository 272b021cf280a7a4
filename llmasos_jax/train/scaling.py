"""The loss scale of float16 training: gradients too small for float16 are lifted into its range.

The loss is multiplied by the scale before it is differentiated and float32 gradients are divided by
it. Where one of them is not finite the step is left out: weights and optimizer stay, and so does
the number of updates, which the learning rate follows; the step counts, its batch is passed over.

References:
  Micikevicius et al., 2017, arXiv 1710.03740, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_jax.config.precision import PrecisionConfig

# Below 1 a scale would take away range, not add it: what overflows then is not the gradient.
SMALLEST = 1.0
LARGEST = 2.0**32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """The state of loss scaling.

    Attributes:
      value: float32, what the mean loss of the next step is multiplied by.
      good_steps: int32, steps since it changed last.
      skipped: int32, steps of the run that were left out.
    """

    value: jax.Array
    good_steps: jax.Array
    skipped: jax.Array

    def after(self, is_finite: jax.Array, every_steps: int) -> LossScale:
        """The state after a step: half the scale after an overflow, twice after `every_steps`.

        Example:
          >>> scale = LossScale(jnp.float32(8), jnp.int32(1), jnp.int32(0))
          >>> float(scale.after(jnp.array(True), 2).value), float(scale.after(False, 2).value)
          (16.0, 4.0)
        """
        good = jnp.where(is_finite, self.good_steps + 1, 0)
        grows = good >= every_steps
        grown = jnp.minimum(self.value * 2.0, LARGEST)
        value = jnp.where(is_finite, jnp.where(grows, grown, self.value), self.value / 2.0)
        skipped = self.skipped + jnp.where(is_finite, 0, 1)
        return LossScale(value, jnp.where(grows, 0, good), skipped)

    def metrics(self, is_finite: jax.Array) -> dict[str, jax.Array]:
        """What a step reports of the state after it."""
        return {
            "loss_scale": self.value,
            "skipped_steps": self.skipped.astype(jnp.float32),
            "overflow": 1.0 - is_finite.astype(jnp.float32),
        }


def start_scale(precision: PrecisionConfig) -> LossScale | None:
    """The scale that a run starts with; None where no dtype needs one."""
    if precision.dtype != "float16":
        return None
    return LossScale(jnp.float32(precision.loss_scale), jnp.int32(0), jnp.int32(0))


def choose(is_new: jax.Array, new: Any, old: Any) -> Any:
    """The new tree or the old one, whole."""
    return jax.tree.map(lambda a, b: jnp.where(is_new, a, b), new, old)
