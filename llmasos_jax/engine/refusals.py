"""Models that cannot run on pages, each with the reason."""

from __future__ import annotations

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.model import Model


def require_engine(model: Model) -> Tokenizer:
    """The tokenizer of a model that the engine can run.

    Raises:
      GenerationError: it cannot; `generate_text` may.
    """
    cfg = model.config
    reasons = {
        "it has an encoder": cfg.encoder.num_layers > 0,
        "it reads in both directions": not cfg.causal,
        "it reads its prompt in both directions (prefix_lm)": cfg.prefix_lm,
        "its positions are a table of distances": cfg.position == "relative",
        f"its attention is a function of its own ({cfg.attention})": cfg.attention != "dot_product",
        "it has no output layer": cfg.head is None,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if model.tokenizer is not None and not found:
        return model.tokenizer
    raise GenerationError(
        f"{model!r} does not run on pages of keys and values: "
        f"{(*found, 'it has no tokenizer')[0]}. Give a decoder, or call its own methods"
    )
