"""Everything that the next step depends on, as one plain pytree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from llmasos_jax.train.scaling import LossScale
from llmasos_jax.train.spikes import SpikeGuard


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of a run between two steps.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: weights, a nested dict in the scanned layout; float32, or with
        `precision.weights="bfloat16"` bfloat16 but for scales, biases and routers.
      opt_state: what Optax keeps.
      key: typed PRNG key of the run; step n draws from `fold_in(key, n)`.
      scale: with float16, the state of loss scaling; else None, which is no leaf.
      guard: with `optim.spike_factor`, the gradient's usual norm; else None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    scale: LossScale | None = None
    guard: SpikeGuard | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step reports, all float32 scalars, over the global batch.

    Attributes:
      loss: what was minimised, nats per token (plus the means of an objective's further terms).
      nll: negative log-likelihood alone, nats per token.
      weight: tokens that counted.
      learning_rate: of this step.
      grad_norm: global norm of the gradient, before clipping.
      param_norm: global norm of the weights, before the step.
      update_norm: global norm of the change.
      extra: an objective's own, each a mean (`LossSum.means`).
    """

    loss: jax.Array
    nll: jax.Array
    weight: jax.Array
    learning_rate: jax.Array
    grad_norm: jax.Array
    param_norm: jax.Array
    update_norm: jax.Array
    extra: dict[str, jax.Array]
