"""GPT-NeoX and Pythia."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import GPT, PLAIN, fused, masks, norm, product
from llmasos_jax.interop.hf.families.rope import read_rope, write_rope
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, Product
from llmasos_jax.interop.tables import Ignored, Table, row

_LAYER = "gpt_neox.layers.{i}."


def _table(cfg: ModelConfig) -> Table:
    # Queries, keys and values of the first head, then of the second.
    groups = cfg.query_heads
    theirs = f"{_LAYER}attention."
    return Table(
        (
            row("embed.table", "gpt_neox.embed_in.weight", SAME),
            *norm("layers.{i}.attn_norm", f"{_LAYER}input_layernorm"),
            *fused(f"{theirs}query_key_value", Product(groups=groups), Product(0, groups=groups)),
            *product("attn.o", f"{theirs}dense", OUT_OF_HEADS),
            *norm("layers.{i}.mlp_norm", f"{_LAYER}post_attention_layernorm"),
            *product("mlp.up", f"{_LAYER}mlp.dense_h_to_4h", PRODUCT),
            *product("mlp.down", f"{_LAYER}mlp.dense_4h_to_h", PRODUCT),
            *norm("final_norm", "gpt_neox.final_layer_norm"),
            row("head.w", "embed_out.weight", PRODUCT),
            # As transformers 5 names it.
            row("head.w", "lm_head.weight", PRODUCT),
        ),
        (
            masks(r"gpt_neox\.layers\.\d+\.attention"),
            Ignored(r".*\.rotary_emb\.inv_freq", "frequencies are computed from the config"),
            Ignored(
                r"(embed_out|lm_head)\.weight",
                "and the config ties the head to the embedding (tie_word_embeddings)",
                equals="gpt_neox.embed_in.weight",
            ),
        ),
    )


def _read_neox(keys: Keys) -> ModelConfig:
    context = keys.integer("max_position_embeddings", 2048)
    rope = read_rope(
        keys,
        context=context,
        theta=keys.number("rotary_emb_base", 10000.0),
        fraction=keys.number("rotary_pct", 0.25),
        has_fraction=True,
    )
    bias = keys.flag("attention_bias", True)
    is_parallel = keys.flag("use_parallel_residual", True)
    return ModelConfig(
        vocab_size=keys.integer("vocab_size", 50432),
        embedding_dim=keys.integer("hidden_size", 6144),
        num_layers=keys.integer("num_hidden_layers", 44),
        num_heads=keys.integer("num_attention_heads", 64),
        context_length=context,
        ffn_dim=keys.integer("intermediate_size", 24576),
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        mlp=keys.choice("hidden_act", PLAIN, "gelu"),
        block="parallel_two_norms" if is_parallel else "sequential",
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        **(GPT | {"qkv_bias": bias, "attention_out_bias": bias}),
        **rope.fields,
    )


def _write_neox(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    rope = write_rope(cfg)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embedding_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.query_heads,
        "max_position_embeddings": cfg.context_length,
        "intermediate_size": cfg.ffn_width,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": next((n for n, mlp in PLAIN.items() if mlp == cfg.mlp), "gelu"),
        "use_parallel_residual": cfg.block != "sequential",
        "attention_bias": cfg.qkv_bias,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rotary_pct": cfg.rope_fraction,
        "rotary_emb_base": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
    }


FAMILIES = (
    Family(
        "GPT-NeoX",
        "gpt_neox",
        ("GPTNeoXForCausalLM", "GPTNeoXModel"),
        _read_neox,
        _table,
        base_prefix="gpt_neox.",
        outside=("embed_out.", "lm_head."),
        write_config=_write_neox,
    ),
)
