"""Qwen2, Qwen3 and their mixtures of experts."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import Experts, ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    DROP,
    ENDS,
    IGNORED,
    MLP,
    NORMS,
    expert_rows,
    read_biases,
    read_decoder,
    windows,
    write_decoder,
    write_windows,
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


def _write_windows(cfg: ModelConfig) -> dict[str, Any]:
    said = write_windows(cfg)
    return {**said, "use_sliding_window": said["sliding_window"] is not None}


def _write_qwen2(manifest: Manifest) -> dict[str, Any]:
    said = _write_windows(manifest.parameters)
    return write_decoder(manifest, "Qwen2ForCausalLM", "qwen2", head_dim=DROP, **said)


def _write_qwen3(manifest: Manifest) -> dict[str, Any]:
    said = _write_windows(manifest.parameters)
    bias = manifest.parameters.qkv_bias
    return write_decoder(manifest, "Qwen3ForCausalLM", "qwen3", attention_bias=bias, **said)


def _write_experts(cfg: ModelConfig) -> dict[str, Any]:
    experts = cfg.experts
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.ffn_dim or cfg.ffn_width,
        "norm_topk_prob": experts.normalize,
        "mlp_only_layers": list(experts.dense_layers),
        "decoder_sparse_step": 1,
    }


def _write_qwen2_moe(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return write_decoder(
        manifest,
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        head_dim=DROP,
        qkv_bias=cfg.qkv_bias,
        shared_expert_intermediate_size=cfg.experts.shared_ffn_dim,
        **_write_windows(cfg),
        **_write_experts(cfg),
    )


def _write_qwen3_moe(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    window = cfg.layer_window(0)
    return write_decoder(
        manifest,
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        attention_bias=cfg.qkv_bias,
        sliding_window=window,
        use_sliding_window=window is not None,
        **_write_experts(cfg),
    )


FAMILIES = (
    Family(
        "Qwen",
        "qwen2",
        ("Qwen2ForCausalLM", "Qwen2Model"),
        _read_qwen2,
        lambda _: TABLE,
        write_config=_write_qwen2,
    ),
    Family(
        "Qwen",
        "qwen3",
        ("Qwen3ForCausalLM", "Qwen3Model"),
        _read_qwen3,
        lambda _: TABLE,
        write_config=_write_qwen3,
    ),
    Family(
        "Qwen",
        "qwen2_moe",
        ("Qwen2MoeForCausalLM", "Qwen2MoeModel"),
        _read_qwen2_moe,
        lambda _: _MOE_TABLE,
        write_config=_write_qwen2_moe,
    ),
    Family(
        "Qwen",
        "qwen3_moe",
        ("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
        _read_qwen3_moe,
        lambda _: _MOE_TABLE,
        write_config=_write_qwen3_moe,
    ),
)
