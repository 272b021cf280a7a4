"""DeepSeek-V2 and V3 (latent attention, shared experts), and dots.llm1 (their experts alone)."""

from __future__ import annotations

import dataclasses
from typing import Any

from llmasos_jax.config.model import Experts, LatentAttention, ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import REQUIRED, Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    ENDS,
    IGNORED,
    LAYER,
    MLP,
    NORMS,
    OURS,
    OUT,
    expert_rows,
    read_biases,
    read_decoder,
    read_widths,
    windows,
    write_decoder,
    write_windows,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.llama import LLAMA
from llmasos_jax.interop.hf.families.rope import all_dim_of, read_rope, write_rope
from llmasos_jax.interop.rows import PRODUCT, VECTOR, Product
from llmasos_jax.interop.tables import Ignored, Table, row

# The defaults of transformers' DeepseekV2Config, DeepseekV3Config and Dots1Config.
_V2: dict[str, Any] = LLAMA | {"vocab_size": 102400}
_V3 = _V2 | {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "max_position_embeddings": 4096,
}
_DOTS = LLAMA | {
    "vocab_size": 152064,
    "hidden_size": 4608,
    "intermediate_size": 10944,
    "num_hidden_layers": 62,
    "num_key_value_heads": 32,
}


def _latent_table(cfg: ModelConfig) -> Table:
    theirs, ours = f"{LAYER}self_attn.", f"{OURS}attn."
    rows = (
        row(f"{ours}q", f"{theirs}q_b_proj.weight", PRODUCT),
        row(f"{ours}q", f"{theirs}q_proj.weight", PRODUCT),
        row(f"{ours}q_down", f"{theirs}q_a_proj.weight", PRODUCT),
        row(f"{ours}q_down_norm.scale", f"{theirs}q_a_layernorm.weight", VECTOR),
        row(f"{ours}kv_down {ours}k_rope", f"{theirs}kv_a_proj_with_mqa.weight", PRODUCT),
        row(f"{ours}kv_norm.scale", f"{theirs}kv_a_layernorm.weight", VECTOR),
        # Key and value of the first head, then of the second.
        row(f"{ours}k {ours}v", f"{theirs}kv_b_proj.weight", Product(groups=cfg.query_heads)),
    )
    first = rows[0 if cfg.latent.q_rank else 1]
    ignored = (
        Ignored(
            rf"model\.layers\.{cfg.num_layers}\..*",
            "the layer after the last one guesses a second token, for speed alone (MTP)",
        ),
    )
    return Table(
        (*ENDS, first, *rows[2:], *OUT, *MLP, *NORMS, *expert_rows()), (*IGNORED, *ignored)
    )


def _latent(keys: Keys) -> tuple[LatentAttention, int]:
    rope_dim = keys.integer("qk_rope_head_dim", 64)
    latent = LatentAttention(
        kv_rank=keys.integer("kv_lora_rank", 512),
        q_rank=keys.integer("q_lora_rank", 1536, null=True),
        rope_dim=rope_dim,
        value_dim=keys.integer("v_head_dim", 128),
    )
    return latent, keys.integer("qk_nope_head_dim", 128) + rope_dim


def _experts(keys: Keys, num_layers: int, defaults: dict[str, Any], **options: Any) -> Experts:
    width = keys.integer("moe_intermediate_size", defaults["width"])
    groups = keys.integer("n_group", defaults.get("groups"), null=True) or 1
    chosen = keys.integer("topk_group", defaults.get("chosen"), null=True) or groups
    first = keys.integer("first_k_dense_replace", defaults["first"])
    keys.only("moe_layer_freq", 1, why="every layer after the dense ones has experts")
    # Where the router cannot leave a group out, groups say nothing.
    groups, chosen = (1, 1) if chosen == groups else (groups, chosen)
    return Experts(
        count=keys.integer("n_routed_experts", defaults["count"]),
        per_token=keys.integer("num_experts_per_tok", defaults["per_token"]),
        ffn_dim=width,
        dense_layers=tuple(range(min(first, num_layers))),
        scale=keys.number("routed_scaling_factor", defaults["scale"]),
        groups=groups,
        groups_per_token=chosen,
        shared_ffn_dim=width * keys.integer("n_shared_experts", defaults["shared"]),
        **options,
    )


def _read_latent(keys: Keys, defaults: dict[str, Any], experts: Experts) -> ModelConfig:
    fields = read_widths(keys, defaults | {"head_dim": None})
    latent, head_dim = _latent(keys)
    rope = read_rope(keys, context=fields["context_length"])
    keys.only("attention_bias", False, why="its products have no biases")
    keys.inert("qk_head_dim", why="qk_nope_head_dim and qk_rope_head_dim say it")
    # These say the rotated width, and a number of heads that nothing is shared by.
    fields |= {"head_dim": head_dim, "num_kv_heads": fields["num_heads"]}
    return ModelConfig(
        **fields,
        **rope.fields,
        latent=latent,
        experts=experts,
        attention_scale=None if rope.score_factor == 1.0 else head_dim**-0.5 * rope.score_factor,
        rope_interleaved=keys.flag("rope_interleave", True),
    )


def _read_v2(keys: Keys) -> ModelConfig:
    method = keys.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise keys.error("topk_method", 'is not known; known: "greedy", "group_limited_greedy"')
    keys.only("scoring_func", "softmax", why="DeepSeek-V2's scores are softmax")
    keys.only("norm_topk_prob", False, why="weights of the chosen experts keep their sum")
    keys.only("rope_interleave", True, why="DeepSeek-V2 rotates neighbours")
    defaults = {
        "count": 64,
        "per_token": REQUIRED,
        "width": 1407,
        "first": 0,
        "scale": 1.0,
        "shared": 2,
    }
    experts = _experts(keys, keys.integer("num_hidden_layers", 32), defaults, normalize=False)
    if method == "greedy":
        experts = dataclasses.replace(experts, groups=1, groups_per_token=1)
    keys.only("mlp_bias", False, why="experts have no biases")
    return _read_latent(keys, _V2, experts)


def _read_v3(keys: Keys) -> ModelConfig:
    keys.only("topk_method", "noaux_tc", why="a bias for the choice, and groups by their best two")
    keys.only("scoring_func", "sigmoid", why="DeepSeek-V3's scores are sigmoids")
    keys.inert(
        *("num_nextn_predict_layers", "num_mtp_layers"),
        why="the layer that guesses a second token is not read",
    )
    defaults = {
        **{"count": 256, "per_token": 8, "width": 2048, "first": 3},
        **{"scale": 2.5, "shared": 1, "groups": 8, "chosen": 4},
    }
    return _read_latent(
        keys,
        _V3,
        _experts(
            keys,
            keys.integer("num_hidden_layers", 61),
            defaults,
            router="sigmoid",
            router_bias=True,
            group_score="top2",
            normalize=keys.flag("norm_topk_prob", True),
        ),
    )


def _read_dots(keys: Keys) -> ModelConfig:
    keys.only("scoring_func", "noaux_tc", "sigmoid", why="dots.llm1's scores are sigmoids")
    fields = read_decoder(keys, _DOTS)
    num_layers = fields["num_layers"]
    first = keys.integer("max_window_layers", 62, null=True)
    window = keys.integer("sliding_window", 4096, null=True)
    late = [first is not None and i >= first for i in range(num_layers)]
    defaults = {
        **{"count": REQUIRED, "per_token": REQUIRED, "width": 1408, "first": 0},
        **{"scale": 1.0, "shared": REQUIRED, "groups": 1, "chosen": 1},
    }
    return ModelConfig(
        **fields,
        **read_biases(keys),
        qk_norm="head",
        attention_windows=windows(keys, num_layers, window, late),
        experts=_experts(
            keys,
            num_layers,
            defaults,
            router="sigmoid",
            router_bias=True,
            group_score="top2",
            normalize=keys.flag("norm_topk_prob", False),
        ),
    )


def _write_experts(cfg: ModelConfig) -> dict[str, Any]:
    experts = cfg.experts
    width = experts.ffn_dim or cfg.ffn_width
    return {
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": width,
        "n_shared_experts": experts.shared_ffn_dim // width,
        "first_k_dense_replace": len(experts.dense_layers),
        "routed_scaling_factor": experts.scale,
        "n_group": experts.groups,
        "topk_group": experts.groups_per_token,
    }


def _write_latent(manifest: Manifest, saved_class: str, kind: str, **more: Any) -> dict[str, Any]:
    cfg, latent = manifest.parameters, manifest.parameters.latent
    return write_decoder(
        manifest,
        saved_class,
        kind,
        head_dim=latent.rope_dim,  # theirs is the rotated part
        num_key_value_heads=cfg.query_heads,
        q_lora_rank=latent.q_rank,
        kv_lora_rank=latent.kv_rank,
        qk_rope_head_dim=latent.rope_dim,
        qk_nope_head_dim=cfg.head_width - latent.rope_dim,
        v_head_dim=latent.value_dim or cfg.head_width,
        **write_rope(cfg, all_dim_of(cfg)),
        **_write_experts(cfg),
        **more,
    )


def _write_v2(manifest: Manifest) -> dict[str, Any]:
    has_groups = manifest.parameters.experts.groups > 1
    method = "group_limited_greedy" if has_groups else "greedy"
    return _write_latent(manifest, "DeepseekV2ForCausalLM", "deepseek_v2", topk_method=method)


def _write_v3(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return _write_latent(
        manifest,
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        norm_topk_prob=cfg.experts.normalize,
        rope_interleave=cfg.rope_interleaved,
    )


def _write_dots(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return write_decoder(
        manifest,
        "Dots1ForCausalLM",
        "dots1",
        attention_bias=cfg.qkv_bias,
        norm_topk_prob=cfg.experts.normalize,
        **write_windows(cfg),
        **_write_experts(cfg),
    )


_DOTS_TABLE = Table((*ENDS, *ATTENTION, *MLP, *NORMS, *expert_rows()), IGNORED)
FAMILIES = (
    Family(
        "DeepSeek",
        "deepseek_v2",
        ("DeepseekV2ForCausalLM", "DeepseekV2Model"),
        _read_v2,
        _latent_table,
        write_config=_write_v2,
    ),
    Family(
        "DeepSeek",
        "deepseek_v3",
        ("DeepseekV3ForCausalLM", "DeepseekV3Model"),
        _read_v3,
        _latent_table,
        write_config=_write_v3,
    ),
    Family(
        "Transformer",
        "dots1",
        ("Dots1ForCausalLM", "Dots1Model"),
        _read_dots,
        lambda _: _DOTS_TABLE,
        write_config=_write_dots,
    ),
)
