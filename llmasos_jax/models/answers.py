"""Everything that a model answers about a batch, by the names under which it is compared."""

from __future__ import annotations

from typing import Any

import jax

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.runtime import Runtime

LOGITS, NEXT, LABELS = "logits", "next_sentence", "labels"
HIDDEN, POOLED = "last_hidden_state", "pooled"


def answers(
    definition: ModelDef,
    params: Any,
    tokens_bt: jax.Array,
    mask_bt: jax.Array,
    runtime: Runtime,
    *,
    types_bt: jax.Array | None = None,
    reads_bt: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Runs a model without a cache.

    Args:
      definition: the model.
      params: its weights.
      tokens_bt: int32 [B, T]; what the encoder reads, where there is one.
      mask_bt: int32 [B, T], 1 for tokens, 0 for padding.
      runtime: how to run.
      types_bt: int32 [B, T], types of tokens, for a model that has them.
      reads_bt: int32 [B, T'], what the decoder of an encoder-decoder reads.

    Returns:
      "logits" float32 [B, T, V] if the model has an output layer; "next_sentence" [B, 2] and
      "labels" [B, C] or [B, T, C] if it has those heads; without any of them "last_hidden_state"
      [B, T, D] and "pooled" [B, D].
    """
    model = definition.bind(params)
    if definition.cfg.encoder.num_layers:
        if reads_bt is None:
            raise ValueError("an encoder-decoder needs reads_bt")
        encoded = model.encode(tokens_bt, segment_ids_bs=mask_bt, runtime=runtime)
        hidden = model.hidden(reads_bt, encoded=encoded, runtime=runtime)
        return {LOGITS: model.logits(hidden.x_btd, runtime)}
    hidden = model.hidden(
        tokens_bt, segment_ids_bt=mask_bt, token_types_bt=types_bt, runtime=runtime
    )
    return _heads(definition.cfg, model, hidden.x_btd, mask_bt, runtime)


def _heads(
    cfg: ModelConfig, model: Any, x_btd: jax.Array, mask_bt: jax.Array, runtime: Runtime
) -> dict[str, jax.Array]:
    found = {}
    if cfg.head is not None:
        found[LOGITS] = model.logits(x_btd, runtime)
    if cfg.next_sentence:
        found[NEXT] = model.next_sentence(model.pooled(x_btd, runtime, mask_bt), runtime)
    if cfg.classifier.labels:
        is_text = cfg.classifier.level == "sequence"
        state = model.pooled(x_btd, runtime, mask_bt) if is_text else x_btd
        found[LABELS] = model.classify(state, runtime)
    if not found:
        found[HIDDEN] = x_btd
        if cfg.pooler:
            found[POOLED] = model.pooled(x_btd, runtime, mask_bt)
    return found
