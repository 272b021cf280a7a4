"""GPT-J."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import (
    OURS,
    PLAIN,
    integer,
    masks,
    norm,
    product,
    rotated_share,
)
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR
from llmasos_jax.interop.tables import Table, row

_LAYER = "transformer.h.{i}."
TABLE = Table(
    (
        row("embed.table", "transformer.wte.weight", SAME),
        *norm("layers.{i}.attn_norm", f"{_LAYER}ln_1"),
        *(row(f"{OURS}attn.{p}", f"{_LAYER}attn.{p}_proj.weight", PRODUCT) for p in "qkv"),
        row(f"{OURS}attn.o", f"{_LAYER}attn.out_proj.weight", OUT_OF_HEADS),
        *product("mlp.up", f"{_LAYER}mlp.fc_in", PRODUCT),
        *product("mlp.down", f"{_LAYER}mlp.fc_out", PRODUCT),
        *norm("final_norm", "transformer.ln_f"),
        row("head.w", "lm_head.weight", PRODUCT),
        row("head.bias", "lm_head.bias", VECTOR),
    ),
    (masks(r"transformer\.h\.\d+\.attn"),),
)


def _read_gptj(keys: Keys) -> ModelConfig:
    keys.only("rotary", True, why="its positions are rotary")
    keys.only("scale_attn_weights", True, why="scores are divided by the root of a head's width")
    keys.only("tie_word_embeddings", False, why="its head has a bias and a table of its own")
    width = integer(keys, "n_embd", "hidden_size", default=4096)
    heads = integer(keys, "n_head", "num_attention_heads", default=16)
    rotated = keys.integer("rotary_dim", 64)
    return ModelConfig(
        vocab_size=keys.integer("vocab_size", 50400),
        embedding_dim=width,
        num_layers=integer(keys, "n_layer", "num_hidden_layers", default=28),
        num_heads=heads,
        context_length=integer(keys, "n_positions", "max_position_embeddings", default=2048),
        ffn_dim=keys.integer("n_inner", None),
        norm="layernorm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        mlp=keys.choice("activation_function", PLAIN, "gelu_new"),
        mlp_bias=True,
        block="parallel",
        rope_fraction=rotated_share(keys, "rotary_dim", rotated, width // max(heads, 1)),
        rope_interleaved=True,
        tie_embeddings=False,
        head_bias=True,
    )


def _write_gptj(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": cfg.vocab_size,
        "n_embd": cfg.embedding_dim,
        "n_layer": cfg.num_layers,
        "n_head": cfg.query_heads,
        "n_positions": cfg.context_length,
        "n_inner": cfg.ffn_width,
        "layer_norm_epsilon": cfg.norm_eps,
        "activation_function": next((n for n, mlp in PLAIN.items() if mlp == cfg.mlp), "gelu_new"),
        "rotary_dim": int(cfg.head_width * cfg.rope_fraction),
        "tie_word_embeddings": False,
    }


FAMILIES = (
    Family(
        "GPT-J",
        "gptj",
        ("GPTJForCausalLM", "GPTJModel"),
        _read_gptj,
        lambda _: TABLE,
        base_prefix="transformer.",
        write_config=_write_gptj,
    ),
)
