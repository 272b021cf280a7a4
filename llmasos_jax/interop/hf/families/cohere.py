"""Cohere's Command R."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    DROP,
    ENDS,
    IGNORED,
    MLP,
    NORMS,
    read_biases,
    read_decoder,
    write_decoder,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.tables import Table

# The defaults of transformers' CohereConfig.
_COHERE: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
# One norm for attention and MLP.
TABLE = Table((*ENDS, *ATTENTION, *MLP, NORMS[0]), IGNORED)


def _read_cohere(keys: Keys) -> ModelConfig:
    keys.inert("model_max_length", why="max_position_embeddings says how many positions there are")
    keys.only("use_qk_norm", False, why="queries and keys are not normalised")
    eps = keys.number("layer_norm_eps", 1e-5)
    fields = read_decoder(keys, _COHERE | {"rms_norm_eps": eps}, theta=500000.0)
    return ModelConfig(
        **fields,
        **read_biases(keys),
        norm="layernorm",
        norm_bias=False,
        block="parallel",
        rope_interleaved=True,
        logit_scale=keys.number("logit_scale", 0.0625),
    )


def _write_cohere(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return write_decoder(
        manifest,
        "CohereForCausalLM",
        "cohere",
        head_dim=DROP,
        rms_norm_eps=DROP,
        layer_norm_eps=cfg.norm_eps,
        attention_bias=cfg.qkv_bias,
        logit_scale=cfg.logit_scale,
    )


FAMILIES = (
    Family(
        "Cohere",
        "cohere",
        ("CohereForCausalLM", "CohereModel"),
        _read_cohere,
        lambda _: TABLE,
        write_config=_write_cohere,
    ),
)
