"""BLOOM."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import GPT, fused, integer, norm, product, tied_head
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, Product
from llmasos_jax.interop.tables import Table, row

_LAYER = "transformer.h.{i}."


def _table(cfg: ModelConfig) -> Table:
    # Queries, keys and values of the first head, then of the second.
    groups = cfg.query_heads
    theirs = f"{_LAYER}self_attention."
    return Table(
        (
            row("embed.table", "transformer.word_embeddings.weight", SAME),
            *norm("embed.norm", "transformer.word_embeddings_layernorm"),
            *norm("layers.{i}.attn_norm", f"{_LAYER}input_layernorm"),
            *fused(f"{theirs}query_key_value", Product(groups=groups), Product(0, groups=groups)),
            *product("attn.o", f"{theirs}dense", OUT_OF_HEADS),
            *norm("layers.{i}.mlp_norm", f"{_LAYER}post_attention_layernorm"),
            *product("mlp.up", f"{_LAYER}mlp.dense_h_to_4h", PRODUCT),
            *product("mlp.down", f"{_LAYER}mlp.dense_4h_to_h", PRODUCT),
            *norm("final_norm", "transformer.ln_f"),
            row("head.w", "lm_head.weight", PRODUCT),
        ),
        (tied_head("transformer.word_embeddings.weight"),),
    )


def _read_bloom(keys: Keys) -> ModelConfig:
    keys.only(
        "apply_residual_connection_post_layernorm", False, why="the residual is what the norm reads"
    )
    keys.only("n_inner", None, why="the MLP is four times as wide as the model")
    keys.inert(
        *("slow_but_exact", "attention_softmax_in_fp32", "bias_dropout_fusion", "skip_bias_add"),
        *("masked_softmax_fusion", "skip_bias_add_qkv", "offset_alibi"),
        why="how Megatron or transformers computes the same",
    )
    return ModelConfig(
        vocab_size=keys.integer("vocab_size", 250880),
        embedding_dim=integer(keys, "hidden_size", "n_embed", default=64),
        num_layers=integer(keys, "n_layer", "num_hidden_layers", default=2),
        num_heads=integer(keys, "n_head", "num_attention_heads", default=8),
        context_length=keys.integer("seq_length", 2048),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        position="alibi",
        embedding_norm=True,
        mlp="gelu_tanh",
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        **GPT,
    )


def _write_bloom(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embedding_dim,
        "n_layer": cfg.num_layers,
        "n_head": cfg.query_heads,
        "seq_length": cfg.context_length,
        "layer_norm_epsilon": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


FAMILIES = (
    Family(
        "BLOOM",
        "bloom",
        ("BloomForCausalLM", "BloomModel"),
        _read_bloom,
        _table,
        base_prefix="transformer.",
        write_config=_write_bloom,
    ),
)
