"""The loss of masked language models, alone or with a score for pairs of sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_jax.config.schema import Config
from llmasos_jax.nn.context import once, share, states_at
from llmasos_jax.train.losses import cross_entropy
from llmasos_jax.train.sums import LossSum, Term
from llmasos_jax.train.tokens import token_sums


def masked_loss(cfg: Config, pairs: str | None = None) -> Callable[..., LossSum]:
    """Predicts the masked tokens; with `pairs`, also whether the second sentence follows.

    Only the masked places go through the output layer, [B, M, D] to [B, M, V]: there is no array of
    scores for all T places. With `pairs` the loss is the mean over masked tokens plus the mean over
    rows (Devlin et al., 2018, arXiv 1810.04805, appendix A.2), both over the global batch.

    Args:
      cfg: `objective` has the weights of the z-loss and the routers' losses.
      pairs: what the pairs' term is called in reports, "nsp" or "sop"; None for masked tokens
        alone.

    Returns:
      `(model, batch, runtime, dropout) -> LossSum`. The batch has targets and weights [B, M], and
      in `extra` "masked_positions" int32 [B, M]; with `pairs` also "token_types" int32 [B, T] and
      "next_sentence" int32 [B].
    """

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        hidden = model.hidden(
            batch.tokens,
            positions_bt=batch.positions,
            segment_ids_bt=batch.segment_ids,
            token_types_bt=batch.extra.get("token_types"),
            runtime=runtime,
            dropout=dropout,
        )
        x_bmd = states_at(hidden.x_btd, batch.extra["masked_positions"], runtime)
        targets_bm, weights_bm = (share(x, runtime) for x in (batch.targets, batch.loss_weights))
        scored = dataclasses.replace(batch, targets=targets_bm, loss_weights=weights_bm)
        sums = token_sums(cfg, model, x_bmd, hidden.routing, scored, runtime)
        if pairs is None:
            return sums
        logits_bc = model.next_sentence(model.pooled(hidden.x_btd, runtime), runtime)
        return dataclasses.replace(sums, terms={pairs: _pair_term(logits_bc, batch, runtime)})

    return loss


def row_weights(segment_ids_bt: jax.Array) -> jax.Array:
    """Which rows are text, float32 [B]: those that fill up a last held-out batch are not."""
    return jnp.any(segment_ids_bt > 0, axis=-1).astype(jnp.float32)


def _pair_term(logits_bc: jax.Array, batch: Any, runtime: Any) -> Term:
    # Where tokens are split over devices, the first one, which is pooled, is on the first of them.
    weights_b = once(row_weights(runtime.whole_tokens(batch.segment_ids)), runtime)
    # A row of this product is one token of `cross_entropy`.
    targets_b = batch.extra["next_sentence"]
    sums = cross_entropy(logits_bc[:, None], targets_b[:, None], weights_b[:, None])
    return Term(sums.nll_sum, sums.weight_sum, {"accuracy": sums.correct_sum})
