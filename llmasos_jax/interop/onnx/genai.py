"""`genai_config.json`: how onnxruntime-genai runs a decoder."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.onnx.model import MODEL, uses_positions

GENAI = "genai_config.json"


def genai_config(manifest: Manifest, tokenizer: Any) -> dict[str, Any] | str:
    """The file's contents; or in one line why that program cannot run the model.

    Args:
      manifest: of a decoder.
      tokenizer: the model's own, for the ids of special tokens; None if it has none.
    """
    cfg = manifest.parameters
    if cfg.value_width != cfg.head_width:
        return (
            f"there is no {GENAI}: onnxruntime-genai keeps values as wide as keys, here they have "
            f"{cfg.value_width} and {cfg.head_width} numbers"
        )
    ends = list(manifest.generation.eos_ids)
    if not ends and (end := getattr(tokenizer, "eos_id", None)) is not None:
        ends = [end]
    begin = getattr(tokenizer, "bos_id", None)
    pad = getattr(tokenizer, "pad_id", None)
    # Rows of a batch are padded with an id whatever it is: the mask says that it is no token.
    ids: dict[str, Any] = {"pad_token_id": pad if pad is not None else (ends or [0])[0]}
    if begin is not None:
        ids["bos_token_id"] = begin
    if ends:
        ids["eos_token_id"] = ends
    model = {
        **ids,
        "context_length": cfg.context_length,
        "type": "decoder",
        "vocab_size": cfg.vocab_size,
        "decoder": _decoder(cfg),
    }
    search = {
        "do_sample": False,
        "max_length": cfg.context_length,
        "num_beams": 1,
        "past_present_share_buffer": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }
    return {"model": model, "search": search}


def _decoder(cfg: ModelConfig) -> dict[str, Any]:
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if uses_positions(cfg):
        inputs["position_ids"] = "position_ids"
    return {
        "session_options": {"provider_options": []},
        "filename": MODEL,
        "head_size": cfg.head_width,
        "hidden_size": cfg.embedding_dim,
        "num_attention_heads": cfg.query_heads,
        "num_hidden_layers": cfg.num_layers,
        "num_key_value_heads": cfg.kv_heads,
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
