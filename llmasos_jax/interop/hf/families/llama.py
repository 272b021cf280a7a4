"""LLaMA 1 to 3.2 and SmolLM2, Mistral and Mixtral."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import Experts, ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    ENDS,
    IGNORED,
    LAYER,
    MLP,
    NORMS,
    OURS,
    expert_rows,
    fused_expert_rows,
    read_biases,
    read_decoder,
    write_decoder,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.rows import PRODUCT
from llmasos_jax.interop.tables import Table, row

# The defaults of transformers' LlamaConfig.
LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_MISTRAL = LLAMA | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
}
_MIXTRAL = _MISTRAL | {"rms_norm_eps": 1e-5}

TABLE = Table((*ENDS, *ATTENTION, *MLP, *NORMS), IGNORED)
_MIXTRAL_TABLE = Table(
    (
        *(*ENDS, *ATTENTION, *NORMS),
        *expert_rows("block_sparse_moe.", names=("w1", "w3", "w2")),
        row(f"{OURS}moe.router", f"{LAYER}mlp.gate.weight", PRODUCT),
        *fused_expert_rows(),
    ),
    IGNORED,
)


def _read_llama(keys: Keys) -> ModelConfig:
    keys.only("rope_interleaved", False, why="pairs are the two halves of a head")
    keys.inert("is_llama_config", why="the class says it")
    # Early conversions of LLaMA 1 call it so.
    context = keys.integer("max_sequence_length", LLAMA["max_position_embeddings"])
    defaults = LLAMA | {"max_position_embeddings": context}
    return ModelConfig(
        **read_decoder(keys, defaults), **read_biases(keys), mlp_bias=keys.flag("mlp_bias", False)
    )


def _read_mistral(keys: Keys) -> ModelConfig:
    window = keys.integer("sliding_window", 4096, null=True)
    return ModelConfig(**read_decoder(keys, _MISTRAL), attention_windows=(window,))


def _read_mixtral(keys: Keys) -> ModelConfig:
    experts = Experts(
        count=keys.integer("num_local_experts", 8),
        per_token=keys.integer("num_experts_per_tok", 2),
        router="softmax_chosen",
    )
    return ModelConfig(
        **read_decoder(keys, _MIXTRAL, theta=1e6),
        attention_windows=(keys.integer("sliding_window", None),),
        experts=experts,
    )


def _write_llama(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    biases = {"attention_bias": cfg.qkv_bias, "mlp_bias": cfg.mlp_bias}
    return write_decoder(manifest, "LlamaForCausalLM", "llama", **biases)


def _write_mistral(manifest: Manifest) -> dict[str, Any]:
    window = manifest.parameters.layer_window(0)
    return write_decoder(manifest, "MistralForCausalLM", "mistral", sliding_window=window)


def _write_mixtral(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return write_decoder(
        manifest,
        "MixtralForCausalLM",
        "mixtral",
        intermediate_size=cfg.experts.ffn_dim or cfg.ffn_width,
        sliding_window=cfg.layer_window(0),
        num_local_experts=cfg.experts.count,
        num_experts_per_tok=cfg.experts.per_token,
    )


FAMILIES = (
    Family(
        "LLaMA",
        "llama",
        ("LlamaForCausalLM", "LlamaModel"),
        _read_llama,
        lambda _: TABLE,
        write_config=_write_llama,
    ),
    Family(
        "Mistral",
        "mistral",
        ("MistralForCausalLM", "MistralModel"),
        _read_mistral,
        lambda _: TABLE,
        write_config=_write_mistral,
    ),
    Family(
        "Mixtral",
        "mixtral",
        ("MixtralForCausalLM", "MixtralModel"),
        _read_mixtral,
        lambda _: _MIXTRAL_TABLE,
        write_config=_write_mixtral,
    ),
)
