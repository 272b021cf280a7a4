"""Qwen2, Qwen3 and their mixtures of experts."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import Experts, ModelConfig
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    ENDS,
    IGNORED,
    MLP,
    NORMS,
    expert_rows,
    read_biases,
    read_decoder,
    windows,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.llama import LLAMA, TABLE
from llmasos_jax.interop.tables import Table

# The defaults of transformers' Qwen2Config; only Qwen3's has a head_dim of its own.
_QWEN2: dict[str, Any] = LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_QWEN3 = _QWEN2 | {"head_dim": 128}
_QWEN2_MOE = _QWEN2 | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
_QWEN3_MOE = _QWEN2_MOE | {
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}

_MOE_TABLE = Table(
    (*ENDS, *ATTENTION, *MLP, *NORMS, *expert_rows(shared="shared_expert.")), IGNORED
)


def _window(keys: Keys) -> int | None:
    keys.only("use_mrope", False, why="positions are those of text")
    window = keys.integer("sliding_window", 4096, null=True)
    return window if keys.flag("use_sliding_window", False) else None


def _late_windows(keys: Keys, num_layers: int) -> tuple[int | None, ...]:
    first = keys.integer("max_window_layers", 28)
    return windows(keys, num_layers, _window(keys), [i >= first for i in range(num_layers)])


def _read_qwen2(keys: Keys) -> ModelConfig:
    fields = read_decoder(keys, _QWEN2)
    return ModelConfig(
        **fields, qkv_bias=True, attention_windows=_late_windows(keys, fields["num_layers"])
    )


def _read_qwen3(keys: Keys) -> ModelConfig:
    fields = read_decoder(keys, _QWEN3)
    return ModelConfig(
        **fields,
        **read_biases(keys),
        qk_norm="head",
        attention_windows=_late_windows(keys, fields["num_layers"]),
    )


def _experts(keys: Keys, num_layers: int, defaults: dict[str, int]) -> Experts:
    dense = set(keys.listed("mlp_only_layers", int, ()))
    step = keys.integer("decoder_sparse_step", 1)
    if step < 1:
        raise keys.error("decoder_sparse_step", "must be 1 or more")
    count = keys.integer(
        "num_local_experts" if "num_local_experts" in keys else "num_experts", defaults["count"]
    )
    shared = (
        keys.integer("shared_expert_intermediate_size", defaults["shared"])
        if defaults.get("shared")
        else 0
    )
    return Experts(
        count=count,
        per_token=keys.integer("num_experts_per_tok", defaults["per_token"]),
        ffn_dim=keys.integer("moe_intermediate_size", defaults["width"]),
        dense_layers=tuple(i for i in range(num_layers) if i in dense or (i + 1) % step),
        normalize=keys.flag("norm_topk_prob", False),
        shared_ffn_dim=shared,
        shared_gate=bool(shared),
    )


def _read_qwen2_moe(keys: Keys) -> ModelConfig:
    fields = read_decoder(keys, _QWEN2_MOE)
    num_layers, first = fields["num_layers"], keys.integer("max_window_layers", 28)
    alternating = [(i + 1) % 2 == 1 and i < first for i in range(num_layers)]
    defaults = {"count": 60, "per_token": 4, "width": 1408, "shared": 5632}
    return ModelConfig(
        **fields,
        qkv_bias=keys.flag("qkv_bias", True),
        attention_windows=windows(keys, num_layers, _window(keys), alternating),
        experts=_experts(keys, num_layers, defaults),
    )


def _read_qwen3_moe(keys: Keys) -> ModelConfig:
    # Unlike Qwen2's, its head_dim has no default: None is hidden_size / num_attention_heads.
    fields = read_decoder(keys, _QWEN3_MOE)
    keys.inert("max_window_layers", why="every layer has the window, or none")
    return ModelConfig(
        **fields,
        **read_biases(keys),
        qk_norm="head",
        attention_windows=(_window(keys),),
        experts=_experts(keys, fields["num_layers"], {"count": 128, "per_token": 8, "width": 768}),
    )


FAMILIES = (
    Family("Qwen", "qwen2", ("Qwen2ForCausalLM", "Qwen2Model"), _read_qwen2, lambda _: TABLE),
    Family("Qwen", "qwen3", ("Qwen3ForCausalLM", "Qwen3Model"), _read_qwen3, lambda _: TABLE),
    Family(
        "Qwen",
        "qwen2_moe",
        ("Qwen2MoeForCausalLM", "Qwen2MoeModel"),
        _read_qwen2_moe,
        lambda _: _MOE_TABLE,
    ),
    Family(
        "Qwen",
        "qwen3_moe",
        ("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
        _read_qwen3_moe,
        lambda _: _MOE_TABLE,
    ),
)
