"""The losses of models that write a text from left to right, each token after those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmasos_jax.config.schema import Config
from llmasos_jax.train.sums import LossSum
from llmasos_jax.train.tokens import token_sums


def causal_loss(cfg: Config) -> Callable[..., LossSum]:
    """Predicts each token from those before it, with z-loss (PaLM, arXiv 2204.02311, section 5)."""

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        return _next_token(cfg, model, batch, runtime, dropout)

    return loss


def prefix_loss(cfg: Config) -> Callable[..., LossSum]:
    """Predicts each token after a prefix, which is read in both directions.

    Raffel et al., 2019, arXiv 1910.10683, section 3.2.1. The batch has "prefix" int32 [B, T] in
    `extra`: 1 for the tokens that all of their document see.
    """

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        prefix_bt = batch.extra["prefix"]
        return _next_token(cfg, model, batch, runtime, dropout, prefix_bt=prefix_bt)

    return loss


def span_corruption_loss(cfg: Config) -> Callable[..., LossSum]:
    """The decoder writes what the encoder's text has lost (arXiv 1910.10683, section 3.1.4).

    The batch is the decoder's; `extra` has the encoder's "encoder_tokens", "encoder_segment_ids"
    and "encoder_positions", int32 [B, S].
    """

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        encoded = model.encode(
            batch.extra["encoder_tokens"],
            positions_bs=batch.extra["encoder_positions"],
            segment_ids_bs=batch.extra["encoder_segment_ids"],
            runtime=runtime,
            dropout=dropout,
        )
        return _next_token(cfg, model, batch, runtime, dropout, encoded=encoded)

    return loss


def _next_token(
    cfg: Config, model: Any, batch: Any, runtime: Any, dropout: Any, **more: Any
) -> LossSum:
    hidden = model.hidden(
        batch.tokens,
        positions_bt=batch.positions,
        segment_ids_bt=batch.segment_ids,
        runtime=runtime,
        dropout=dropout,
        **more,
    )
    return token_sums(cfg, model, hidden.x_btd, hidden.routing, batch, runtime)
