"""GPT-2."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import (
    GPT,
    PLAIN,
    fused,
    integer,
    masks,
    norm,
    product,
    tied_head,
)
from llmasos_jax.interop.rows import PRODUCT, SAME, VECTOR, Product
from llmasos_jax.interop.tables import Table, row

_LAYER = "transformer.h.{i}."
# Its products are Conv1D, [in, out].
_IN_FIRST = Product(is_in_first=True)
TABLE = Table(
    (
        row("embed.table", "transformer.wte.weight", SAME),
        row("embed.positions", "transformer.wpe.weight", SAME),
        *norm("layers.{i}.attn_norm", f"{_LAYER}ln_1"),
        *fused(f"{_LAYER}attn.c_attn", _IN_FIRST, VECTOR),
        *product("attn.o", f"{_LAYER}attn.c_proj", Product(num_in=2, is_in_first=True)),
        *norm("layers.{i}.mlp_norm", f"{_LAYER}ln_2"),
        *product("mlp.up", f"{_LAYER}mlp.c_fc", _IN_FIRST),
        *product("mlp.down", f"{_LAYER}mlp.c_proj", _IN_FIRST),
        *norm("final_norm", "transformer.ln_f"),
        row("head.w", "lm_head.weight", PRODUCT),
    ),
    (tied_head("transformer.wte.weight"), masks(r"transformer\.h\.\d+\.attn")),
)


def _read_gpt2(keys: Keys) -> ModelConfig:
    keys.inert("n_ctx", why="n_positions says how many positions there are")
    keys.inert("reorder_and_upcast_attn", why="scores are computed in float32 here anyway")
    keys.only("scale_attn_by_inverse_layer_idx", False, why="scores are scaled alike in all layers")
    return ModelConfig(
        vocab_size=keys.integer("vocab_size", 50257),
        embedding_dim=integer(keys, "n_embd", "hidden_size", default=768),
        num_layers=integer(keys, "n_layer", "num_hidden_layers", default=12),
        num_heads=integer(keys, "n_head", "num_attention_heads", default=12),
        context_length=integer(keys, "n_positions", "max_position_embeddings", default=1024),
        ffn_dim=keys.integer("n_inner", None),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        mlp=keys.choice("activation_function", PLAIN, "gelu_new"),
        attention_scale=None if keys.flag("scale_attn_weights", True) else 1.0,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        position="learned",
        **GPT,
    )


def _write_gpt2(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": cfg.vocab_size,
        "n_embd": cfg.embedding_dim,
        "n_layer": cfg.num_layers,
        "n_head": cfg.query_heads,
        "n_positions": cfg.context_length,
        "n_inner": cfg.ffn_width,
        "layer_norm_epsilon": cfg.norm_eps,
        "activation_function": next((n for n, mlp in PLAIN.items() if mlp == cfg.mlp), "gelu_new"),
        "scale_attn_weights": cfg.attention_scale != 1.0,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


FAMILIES = (
    Family(
        "GPT-2",
        "gpt2",
        ("GPT2LMHeadModel", "GPT2Model"),
        _read_gpt2,
        lambda _: TABLE,
        base_prefix="transformer.",
        write_config=_write_gpt2,
    ),
)
