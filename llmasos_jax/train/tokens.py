"""The part of a loss that every objective has: its targets, the z-loss, the routers' losses."""

from __future__ import annotations

from typing import Any

import jax

from llmasos_jax.config.schema import Config
from llmasos_jax.nn.moe import Routing
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.losses import cross_entropy
from llmasos_jax.train.routing import router_losses
from llmasos_jax.train.sums import LossSum


def token_sums(
    cfg: Config,
    model: Any,
    x_bmd: jax.Array,
    routing: Routing | None,
    batch: Any,
    runtime: Runtime,
) -> LossSum:
    """Scores the targets of a batch.

    Args:
      cfg: `objective` has the weights of the z-loss and the routers' losses.
      model: a bound Transformer.
      x_bmd: the last hidden states at the M places that are predicted, [B, M, D].
      routing: what the routers did, of `Hidden`.
      batch: its `targets` and `loss_weights` are [B, M].
      runtime: how the model runs.

    Returns:
      Sums in nats and in tokens, with "accuracy" and the routers' reports.
    """
    sums = cross_entropy(model.logits(x_bmd, runtime), batch.targets, batch.loss_weights)
    routers, reports = router_losses(routing, sums.weight_sum, cfg.objective, runtime)
    return LossSum(
        loss_sum=sums.nll_sum + cfg.objective.z_loss * sums.z_sum + routers,
        nll_sum=sums.nll_sum,
        weight_sum=sums.weight_sum,
        extra={"accuracy": sums.correct_sum, **reports},
    )
