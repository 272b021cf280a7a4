"""The part of a loss that every objective has: its targets, the z-loss, the routers' losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from llmasos_jax.config.schema import Config
from llmasos_jax.nn.moe import Routing
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.chunked import Chunks, chunked_cross_entropy
from llmasos_jax.train.losses import CrossEntropy, cross_entropy
from llmasos_jax.train.routing import router_losses
from llmasos_jax.train.sums import LossSum

# Tokens of each row. On a CPU this takes a third of the memory, and no more time, of all at once
# (135M shape, 4 x 512; chunks of 32 to 256 differ by less than runs of one).
CPU_CHUNK = 128


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
    loss, sums = _scored(cfg, model, x_bmd, batch, runtime)
    routers, reports = router_losses(routing, sums.weight_sum, cfg.objective, runtime)
    return LossSum(
        loss_sum=loss + routers,
        nll_sum=sums.nll_sum,
        weight_sum=sums.weight_sum,
        extra={"accuracy": sums.correct_sum, **reports},
    )


def _scored(
    cfg: Config, model: Any, x_bmd: jax.Array, batch: Any, runtime: Runtime
) -> tuple[jax.Array, CrossEntropy]:
    """The loss of the targets without the routers' part, and its sums."""
    z_loss, targets = cfg.objective.z_loss, (batch.targets, batch.loss_weights)
    size = cfg.train.loss_chunk
    if size is None and runtime.platform == "cpu":
        size = CPU_CHUNK
    if size is None or size >= x_bmd.shape[1]:
        logits_bmv = model.logits(x_bmd, runtime)
        sums = cross_entropy(logits_bmv, *targets, runtime.label_smoothing)
        return sums.loss_sum(z_loss), sums
    chunks = Chunks(size, z_loss, again=runtime.dtype == jnp.float16)
    score, weights = model.output_layer(runtime)
    return chunked_cross_entropy(score, weights, x_bmd, *targets, chunks, runtime.label_smoothing)
