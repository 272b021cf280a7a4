"""LLaMA 1 to 3.2 and SmolLM2, Mistral and Mixtral."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import Experts, ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    ENDS,
    GATED,
    IGNORED,
    LAYER,
    MLP,
    NORMS,
    OURS,
    expert_rows,
    fused_expert_rows,
    read_biases,
    read_decoder,
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


def _write_widths(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embedding_dim,
        "intermediate_size": cfg.ffn_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.query_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_width,
        "hidden_act": next((n for n, mlp in GATED.items() if mlp == cfg.mlp), "silu"),
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rope_theta": cfg.rope_theta,
    }


def _write_llama(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    scaling: dict[str, Any] | None = None
    if cfg.rope_scaling.kind == "linear":
        scaling = {"rope_type": "linear", "factor": cfg.rope_scaling.factor}
    elif cfg.rope_scaling.kind == "llama3":
        scaling = {
            "rope_type": "llama3",
            "factor": cfg.rope_scaling.factor,
            "low_freq_factor": cfg.rope_scaling.low_frequency,
            "high_freq_factor": cfg.rope_scaling.high_frequency,
            "original_max_position_embeddings": cfg.rope_scaling.original_length,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_write_widths(cfg),
        "rope_scaling": scaling,
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.mlp_bias,
    }


def _write_mistral(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **_write_widths(cfg),
        "sliding_window": cfg.layer_window(0),
    }


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
    ),
)
