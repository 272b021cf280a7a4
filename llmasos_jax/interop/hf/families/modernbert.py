"""ModernBERT (Warner et al., 2024, arXiv 2412.13663)."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import GATED, read_biases, windows
from llmasos_jax.interop.hf.families.encoder import (
    class_of,
    linear,
    name_in,
    output_ignored,
    with_heads,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import OURS, fused, norm, product
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR
from llmasos_jax.interop.tables import Table, row

_LAYER = "model.layers.{i}."
_EMBEDDING = "model.embeddings.tok_embeddings.weight"
_GATED = (f"{OURS}mlp.gate", f"{OURS}mlp.up")

TABLE = Table(
    (
        row("embed.table", _EMBEDDING, SAME),
        *norm("embed.norm", "model.embeddings.norm"),
        *norm(f"{OURS}attn_norm", f"{_LAYER}attn_norm"),
        *fused(f"{_LAYER}attn.Wqkv", PRODUCT, VECTOR),
        *product("attn.o", f"{_LAYER}attn.Wo", OUT_OF_HEADS),
        *norm(f"{OURS}mlp_norm", f"{_LAYER}mlp_norm"),
        row(" ".join(_GATED), f"{_LAYER}mlp.Wi.weight", PRODUCT),
        row(" ".join(f"{part}_bias" for part in _GATED), f"{_LAYER}mlp.Wi.bias", VECTOR),
        *product("mlp.down", f"{_LAYER}mlp.Wo", PRODUCT),
        *norm("final_norm", "model.final_norm"),
        *linear("head.transform", "head.dense"),
        *norm("head.norm", "head.norm"),
        row("head.w", "decoder.weight", PRODUCT),
        row("head.bias", "decoder.bias", VECTOR),
    ),
    output_ignored("decoder", "decoder.bias", _EMBEDDING),
)


def _read_modernbert(keys: Keys) -> ModelConfig:
    keys.inert(
        *("embedding_dropout", "mlp_dropout", "initializer_cutoff_factor", "sparse_prediction"),
        *("sparse_pred_ignore_index", "repad_logits_with_grad"),
        why="it matters in training alone",
    )
    keys.inert("deterministic_flash_attn", "reference_compile", why="it says how to compute")
    keys.inert("classifier_pooling", why="of classifiers, which are not read")
    keys.inert("layer_norm_eps", "position_embedding_type", why="norm_eps and the ropes say it")
    num_layers, local = keys.integer("num_hidden_layers", 22), keys.integer("local_attention", 128)
    every = keys.integer("global_attn_every_n_layers", 3)
    if every < 1:
        raise keys.error("global_attn_every_n_layers", "must be 1 or more")
    theta, near = _thetas(keys)
    trunk = ModelConfig(
        vocab_size=keys.integer("vocab_size", 50368),
        embedding_dim=keys.integer("hidden_size", 768),
        num_layers=num_layers,
        num_heads=keys.integer("num_attention_heads", 12),
        context_length=keys.integer("max_position_embeddings", 8192),
        ffn_dim=keys.integer("intermediate_size", 1152),
        causal=False,
        head=None,
        norm="layernorm",
        norm_eps=keys.number("norm_eps", 1e-5),
        norm_bias=keys.flag("norm_bias", False),
        embedding_norm=True,
        first_attn_norm=False,
        rope_theta=theta,
        rope_theta_local=near,
        # Half of the window lies on each side, and the token itself between.
        attention_windows=windows(
            keys, num_layers, local // 2 + 1, [bool(i % every) for i in range(num_layers)]
        ),
        mlp=keys.choice("hidden_activation", GATED, "gelu"),
        mlp_bias=keys.flag("mlp_bias", False),
        **read_biases(keys),
    )
    cfg = with_heads(trunk, keys, output="head.")
    if cfg.head is not None:
        keys.only("decoder_bias", True, why="an output layer behind a transform has a bias")
        keys.only("classifier_bias", cfg.mlp_bias, why="the transform has a bias as the MLP has")
        if keys.choice("classifier_activation", GATED, "gelu") != cfg.mlp:
            raise keys.error("classifier_activation", "must be hidden_activation, as is the MLP's")
    keys.inert("decoder_bias", "classifier_bias", "classifier_activation", why="of heads")
    return cfg


def _thetas(keys: Keys) -> tuple[float, float]:
    """The bases of layers that see everything, and of those with a window."""
    keys.only("rope_scaling", None, {}, why="no ModernBERT is stretched")
    bases = {
        "full_attention": keys.number("global_rope_theta", 160000.0),
        "sliding_attention": keys.number("local_rope_theta", 10000.0, null=True),
    }
    newer = keys.group("rope_parameters")
    for kind in bases:
        group = None if newer is None else newer.group(kind)
        if group is not None:
            group.only("rope_type", "default", why="no ModernBERT is stretched")
            bases[kind] = group.number("rope_theta", bases[kind])
            group.finish()
    if newer is not None:
        newer.finish()
    full, near = bases["full_attention"], bases["sliding_attention"]
    return full, full if near is None else near


def _write_modernbert(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    each = [cfg.layer_window(layer) for layer in range(cfg.num_layers)]
    near = next((w for w in each if w is not None), 1)
    act = name_in(GATED, cfg.mlp)
    return {
        "architectures": [class_of(cfg, "ModernBert")],
        "model_type": "modernbert",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embedding_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.query_heads,
        "max_position_embeddings": cfg.context_length,
        "intermediate_size": cfg.ffn_width,
        "norm_eps": cfg.norm_eps,
        "norm_bias": cfg.norm_bias,
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.mlp_bias,
        "hidden_activation": act,
        "local_attention": 2 * (near - 1),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in each],
        # The older spelling, which transformers 5 reads too.
        "global_rope_theta": cfg.rope_theta,
        "local_rope_theta": cfg.rope_theta_local or cfg.rope_theta,
        "tie_word_embeddings": cfg.tie_embeddings,
        "decoder_bias": True,
        "classifier_bias": cfg.mlp_bias,
        "classifier_activation": act,
    }


FAMILIES = (
    # Its classifiers have the transform of the output layer in front, which is not computed.
    Family(
        "ModernBERT",
        "modernbert",
        ("ModernBertForMaskedLM", "ModernBertModel"),
        _read_modernbert,
        lambda _: TABLE,
        outside=("head.", "decoder."),
        write_config=_write_modernbert,
    ),
)
