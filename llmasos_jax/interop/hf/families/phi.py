"""Phi-3 and Phi-4: fused products, a part of each head rotated, longrope."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    DROP,
    ENDS,
    IGNORED,
    LAYER,
    MLP,
    NORMS,
    OURS,
    OUT,
    read_decoder,
    write_decoder,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.rows import PRODUCT
from llmasos_jax.interop.tables import Table, row

# The defaults of transformers' Phi3Config.
_PHI3: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_TABLE = Table(
    (
        *ENDS,
        *NORMS,
        row(
            f"{OURS}attn.q {OURS}attn.k {OURS}attn.v", f"{LAYER}self_attn.qkv_proj.weight", PRODUCT
        ),
        row(f"{OURS}mlp.gate {OURS}mlp.up", f"{LAYER}mlp.gate_up_proj.weight", PRODUCT),
        *OUT,
        *MLP,
    ),
    IGNORED,
)


def _read(keys: Keys) -> ModelConfig:
    # "su" and "yarn" are what early files call longrope.
    fields = read_decoder(
        keys,
        _PHI3,
        has_fraction=True,
        original=4096,
        aliases={"su": "longrope", "yarn": "longrope"},
    )
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        keys.only(key, False, why="its products have no biases")
    keys.inert("full_attn_mod", "interpolate_factor", why="its class reads neither")
    cfg = ModelConfig(**fields, attention_windows=(keys.integer("sliding_window", None),))
    if int(cfg.head_width * cfg.rope_fraction) % 2:
        raise keys.error("partial_rotary_factor", "rotates an odd part of each head")
    return cfg


def _write(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return write_decoder(
        manifest,
        "Phi3ForCausalLM",
        "phi3",
        head_dim=DROP,
        partial_rotary_factor=cfg.rope_fraction,
        original_max_position_embeddings=cfg.rope_scaling.original_length or cfg.context_length,
        sliding_window=cfg.layer_window(0),
    )


FAMILIES = (
    Family(
        "Phi",
        "phi3",
        ("Phi3ForCausalLM", "Phi3Model"),
        _read,
        lambda _: _TABLE,
        write_config=_write,
    ),
)
