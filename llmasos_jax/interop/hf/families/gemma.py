"""Gemma 1, 2 and 3, the text part of Gemma 3's models for images too."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    ENDS,
    IGNORED,
    LAYER,
    MLP,
    OURS,
    OUTPUT_NORMS,
    read_biases,
    read_widths,
    windows,
    write_decoder,
    write_windows,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.llama import TABLE
from llmasos_jax.interop.hf.families.rope import Rope, read_rope, read_rope_group
from llmasos_jax.interop.rows import VECTOR
from llmasos_jax.interop.tables import Ignored, Table, row

# The defaults of transformers' GemmaConfig, Gemma2Config and Gemma3TextConfig.
_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_GEMMA3 = _GEMMA2 | {"vocab_size": 262208, "max_position_embeddings": 131072}

_TABLE2 = Table(
    (
        *ENDS,
        *ATTENTION,
        *MLP,
        row(f"{OURS}attn_norm.scale", f"{LAYER}input_layernorm.weight", VECTOR),
        row(f"{OURS}mlp_norm.scale", f"{LAYER}pre_feedforward_layernorm.weight", VECTOR),
        *OUTPUT_NORMS,
    ),
    (
        *IGNORED,
        Ignored(r"model\.vision_tower\..*", "it reads images; the text part is taken alone"),
        Ignored(
            r"model\.multi_modal_projector\..*", "it places images; the text part is taken alone"
        ),
    ),
)


def _common(keys: Keys, fields: dict[str, Any]) -> dict[str, Any]:
    keys.only("use_bidirectional_attention", False, None, why="every position sees the past alone")
    return {
        **fields,
        **read_biases(keys),
        "norm_unit_offset": True,
        "embedding_scale": fields["embedding_dim"] ** 0.5,
    }


def _read_gemma(keys: Keys) -> ModelConfig:
    fields = read_widths(keys, _GEMMA)
    # The first releases say "gelu" and mean the approximation: transformers takes it so too.
    keys.only("hidden_activation", None, "gelu_pytorch_tanh", why="Gemma's is the tanh GELU")
    if fields["mlp"] == "geglu":
        fields["mlp"] = "geglu_tanh"
    rope = read_rope(keys, context=fields["context_length"])
    return ModelConfig(**_common(keys, fields), **rope.fields)


def _read_second(keys: Keys, defaults: dict[str, Any], logit_cap: float | None) -> dict[str, Any]:
    """What Gemma 2 and 3 share."""
    fields = _common(keys, read_widths(keys, defaults, "hidden_activation"))
    keys.only("hidden_act", "gelu_pytorch_tanh", why='"hidden_activation" says it')
    width = keys.number("query_pre_attn_scalar", 256.0)
    if width <= 0:
        raise keys.error("query_pre_attn_scalar", "must be above 0")
    return {
        **fields,
        "norm_placement": "sandwich",
        "attention_scale": width**-0.5,
        "logit_soft_cap": keys.number("final_logit_softcapping", logit_cap, null=True),
    }


def _read_gemma2(keys: Keys) -> ModelConfig:
    fields = _read_second(keys, _GEMMA2, 30.0)
    num_layers, window = fields["num_layers"], keys.integer("sliding_window", 4096, null=True)
    keys.inert("cache_implementation", "sliding_window_size", why="sliding_window says it")
    alternating = [i % 2 == 0 for i in range(num_layers)]
    return ModelConfig(
        **fields,
        **read_rope(keys, context=fields["context_length"]).fields,
        attention_soft_cap=keys.number("attn_logit_softcapping", 50.0, null=True),
        attention_windows=windows(keys, num_layers, window, alternating),
    )


def _read_gemma3(keys: Keys) -> ModelConfig:
    fields = _read_second(keys, _GEMMA3, None)
    keys.inert("attn_logit_softcapping", why="it stays from Gemma 2: no score is capped with it")
    num_layers, window = fields["num_layers"], keys.integer("sliding_window", 4096, null=True)
    keys.inert("_sliding_window_pattern", why="layer_types says it")
    period = keys.integer("sliding_window_pattern", 6)
    if period < 1:
        raise keys.error("sliding_window_pattern", "must be 1 or more")
    rope, local = _two_ropes(keys, fields["context_length"])
    return ModelConfig(
        **fields,
        **rope.fields,
        rope_theta_local=local,
        qk_norm="head",
        attention_windows=windows(
            keys, num_layers, window, [bool((i + 1) % period) for i in range(num_layers)]
        ),
    )


def _two_ropes(keys: Keys, context: int) -> tuple[Rope, float]:
    """The rotary positions of layers that see everything, and the base of those with a window."""
    theta, local = keys.number("rope_theta", 1e6), keys.number("rope_local_base_freq", 1e4)
    newer = keys.group("rope_parameters")
    older = keys.group("rope_scaling")
    if newer is None:
        if older is None:
            return Rope(theta), local
        return read_rope_group(older, context=context, theta=theta), local
    if older is not None:
        raise keys.error("rope_scaling", 'stands beside "rope_parameters"; one of them is right')
    full, near = newer.group("full_attention"), newer.group("sliding_attention")
    newer.finish()
    rope = Rope(theta) if full is None else read_rope_group(full, context=context, theta=theta)
    if near is None:
        return rope, local
    near.only("rope_type", "default", why="layers with a window are never stretched")
    return rope, read_rope_group(near, context=context, theta=local).theta


def _read_gemma3_whole(keys: Keys) -> ModelConfig:
    text = keys.group("text_config", is_config=True)
    if text is None:
        raise keys.error("text_config", "must describe the text part")
    keys.inert(
        *("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index"),
        *("image_token_index", "image_token_id", "boi_token_id", "eoi_token_id"),
        why="the text part is taken alone",
    )
    cfg = _read_gemma3(text)
    text.finish()
    return cfg.replace(tie_embeddings=keys.flag("tie_word_embeddings", cfg.tie_embeddings))


def _write_gemma(manifest: Manifest) -> dict[str, Any]:
    bias = manifest.parameters.qkv_bias
    return write_decoder(manifest, "GemmaForCausalLM", "gemma", attention_bias=bias)


def _write_second(manifest: Manifest, saved_class: str, kind: str, **more: Any) -> dict[str, Any]:
    """What Gemma 2 and 3 share."""
    cfg = manifest.parameters
    said = write_decoder(
        manifest,
        saved_class,
        kind,
        attention_bias=cfg.qkv_bias,
        query_pre_attn_scalar=_width_of(cfg),
        final_logit_softcapping=cfg.logit_soft_cap,
        **write_windows(cfg),
        **more,
    )
    act = said.pop("hidden_act")
    return {**said, "hidden_activation": act}


def _width_of(cfg: ModelConfig) -> float:
    """What the scores' factor is one over the root of; a whole number if it can be."""
    scale = cfg.attention_scale or cfg.head_width**-0.5
    exact = scale**-2
    return round(exact) if round(exact) and round(exact) ** -0.5 == scale else exact


def _write_gemma2(manifest: Manifest) -> dict[str, Any]:
    cap = manifest.parameters.attention_soft_cap
    return _write_second(manifest, "Gemma2ForCausalLM", "gemma2", attn_logit_softcapping=cap)


def _write_gemma3(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    local = cfg.rope_theta if cfg.rope_theta_local is None else cfg.rope_theta_local
    return _write_second(manifest, "Gemma3ForCausalLM", "gemma3_text", rope_local_base_freq=local)


FAMILIES = (
    Family(
        "Gemma",
        "gemma",
        ("GemmaForCausalLM", "GemmaModel"),
        _read_gemma,
        lambda _: TABLE,
        write_config=_write_gemma,
    ),
    Family(
        "Gemma",
        "gemma2",
        ("Gemma2ForCausalLM", "Gemma2Model"),
        _read_gemma2,
        lambda _: _TABLE2,
        write_config=_write_gemma2,
    ),
    Family(
        "Gemma",
        "gemma3_text",
        ("Gemma3ForCausalLM", "Gemma3TextModel"),
        _read_gemma3,
        lambda _: _TABLE2,
        write_config=_write_gemma3,
    ),
    Family(
        "Gemma",
        "gemma3",
        ("Gemma3ForConditionalGeneration", "Gemma3Model"),
        _read_gemma3_whole,
        lambda _: _TABLE2,
        renames=(
            ("language_model.model.", "model."),
            ("language_model.lm_head.", "lm_head."),
            ("model.language_model.", "model."),
            ("language_model.", "model."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ),
    ),
)
