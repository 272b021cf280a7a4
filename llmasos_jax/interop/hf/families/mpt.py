"""MPT."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import INERT, Keys
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import OURS, tied_head
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR
from llmasos_jax.interop.tables import Table, row

_LAYER = "transformer.blocks.{i}."
TABLE = Table(
    (
        row("embed.table", "transformer.wte.weight", SAME),
        row(f"{OURS}attn_norm.scale", f"{_LAYER}norm_1.weight", VECTOR),
        row(f"{OURS}attn.q {OURS}attn.k {OURS}attn.v", f"{_LAYER}attn.Wqkv.weight", PRODUCT),
        row(f"{OURS}attn.o", f"{_LAYER}attn.out_proj.weight", OUT_OF_HEADS),
        row(f"{OURS}mlp_norm.scale", f"{_LAYER}norm_2.weight", VECTOR),
        row(f"{OURS}mlp.up", f"{_LAYER}ffn.up_proj.weight", PRODUCT),
        row(f"{OURS}mlp.down", f"{_LAYER}ffn.down_proj.weight", PRODUCT),
        row("final_norm.scale", "transformer.norm_f.weight", VECTOR),
        row("head.w", "lm_head.weight", PRODUCT),
    ),
    (tied_head("transformer.wte.weight"),),
)


def _read_mpt(keys: Keys) -> ModelConfig:
    keys.inert("learned_pos_emb", why="positions are ALiBi's, so there are none to learn")
    keys.inert("embedding_fraction", "verbose", "tokenizer_name", why="for training alone")
    keys.only("logit_scale", None, why="transformers scales no logits of this family")
    keys.only("no_bias", True, why="this family has no biases")
    keys.only("norm_type", "low_precision_layernorm", "layernorm", why="its norms are LayerNorms")
    width = keys.integer("d_model", 2048)
    return ModelConfig(
        vocab_size=keys.integer("vocab_size", 50368),
        embedding_dim=width,
        num_layers=keys.integer("n_layers", 24),
        num_heads=keys.integer("n_heads", 16),
        context_length=keys.integer("max_seq_len", 2048),
        ffn_dim=width * keys.integer("expansion_ratio", 4),
        norm="layernorm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        norm_bias=False,
        position="alibi",
        attention_scale=_read_attention(keys.group("attn_config")),
        mlp="gelu",
        tie_embeddings=keys.flag("tie_word_embeddings", True),
    )


def _read_attention(keys: Keys | None) -> float | None:
    """What multiplies the scores; None is the usual."""
    if keys is None:
        return None
    keys.inert(*INERT, "is_encoder_decoder", why="keys that any config class writes")
    keys.inert("attn_impl", "attn_pdrop", why="how it is computed, and training")
    keys.only("attn_type", "multihead_attention", why="transformers has no other in this family")
    keys.only("alibi", True, why="positions are ALiBi's")
    keys.only("alibi_bias_max", 8, why="slopes are those of 8")
    keys.only("clip_qkv", None, why="queries, keys and values are not clipped")
    for name in ("qk_ln", "prefix_lm", "attn_uses_sequence_id"):
        keys.only(name, False, why="it is another attention")
    scale = keys.number("softmax_scale", None)
    keys.finish()
    return scale


def _write_mpt(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.embedding_dim,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.query_heads,
        "max_seq_len": cfg.context_length,
        "expansion_ratio": cfg.ffn_width // cfg.embedding_dim,
        "layer_norm_epsilon": cfg.norm_eps,
        "no_bias": True,
        "attn_config": {"alibi": True, "softmax_scale": cfg.attention_scale},
        "tie_word_embeddings": cfg.tie_embeddings,
    }


FAMILIES = (
    Family(
        "MPT",
        "mpt",
        ("MptForCausalLM", "MPTForCausalLM", "MptModel"),
        _read_mpt,
        lambda _: TABLE,
        base_prefix="transformer.",
        write_config=_write_mpt,
    ),
)
