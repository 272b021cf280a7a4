"""OPT."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import GPT, OURS, PLAIN, norm, product, tied_head
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR, Same
from llmasos_jax.interop.tables import Table, row

_BODY = "model.decoder."
_LAYER = _BODY + "layers.{i}."
TABLE = Table(
    (
        row("embed.table", f"{_BODY}embed_tokens.weight", SAME),
        # Positions count from 2; nothing reads the two rows before.
        row("embed.positions", f"{_BODY}embed_positions.weight", Same(dropped=2)),
        *norm("layers.{i}.attn_norm", f"{_LAYER}self_attn_layer_norm"),
        *(row(f"{OURS}attn.{p}", f"{_LAYER}self_attn.{p}_proj.weight", PRODUCT) for p in "qkv"),
        *(row(f"{OURS}attn.{p}_bias", f"{_LAYER}self_attn.{p}_proj.bias", VECTOR) for p in "qkv"),
        *product("attn.o", f"{_LAYER}self_attn.out_proj", OUT_OF_HEADS),
        *norm("layers.{i}.mlp_norm", f"{_LAYER}final_layer_norm"),
        *product("mlp.up", f"{_LAYER}fc1", PRODUCT),
        *product("mlp.down", f"{_LAYER}fc2", PRODUCT),
        *norm("final_norm", f"{_BODY}final_layer_norm"),
        row("head.w", "lm_head.weight", PRODUCT),
    ),
    (tied_head(f"{_BODY}embed_tokens.weight"),),
)


def _read_opt(keys: Keys) -> ModelConfig:
    keys.inert("init_std", why="for training alone")
    keys.only("do_layer_norm_before", True, why="norms stand before attention and MLP")
    keys.only("layer_norm_elementwise_affine", True, why="norms have scales and biases")
    width = keys.integer("hidden_size", 768)
    keys.only("word_embed_proj_dim", width, None, why="embeddings are as wide as the model")
    bias = keys.flag("enable_bias", True)
    return ModelConfig(
        vocab_size=keys.integer("vocab_size", 50272),
        embedding_dim=width,
        num_layers=keys.integer("num_hidden_layers", 12),
        num_heads=keys.integer("num_attention_heads", 12),
        context_length=keys.integer("max_position_embeddings", 2048),
        ffn_dim=keys.integer("ffn_dim", 3072),
        position="learned",
        mlp=keys.choice("activation_function", PLAIN, "relu"),
        final_norm=not keys.flag("_remove_final_layer_norm", False),
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        **(GPT | {"qkv_bias": bias, "attention_out_bias": bias, "mlp_bias": bias}),
    )


def _write_opt(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embedding_dim,
        "word_embed_proj_dim": cfg.embedding_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.query_heads,
        "max_position_embeddings": cfg.context_length,
        "ffn_dim": cfg.ffn_width,
        "activation_function": next((n for n, mlp in PLAIN.items() if mlp == cfg.mlp), "relu"),
        "enable_bias": cfg.qkv_bias,
        "_remove_final_layer_norm": not cfg.final_norm,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


FAMILIES = (
    Family(
        "OPT",
        "opt",
        ("OPTForCausalLM", "OPTModel"),
        _read_opt,
        lambda _: TABLE,
        write_config=_write_opt,
    ),
)
