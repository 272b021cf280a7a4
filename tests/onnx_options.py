"""Models for exports: a tiny one of each family, and one for every option."""

from dataclasses import replace
from typing import Any

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Classifier, Encoder
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.models.zoo import preset, presets

# Of each family one, the one with the most options where they differ.
CHOSEN = {"Gemma": "gemma-2-2b", "DeepSeek": "deepseek-v3", "Qwen": "qwen3-30b-a3b"}
FAMILIES = {row.architecture: row.name for row in reversed(list(presets().values()))} | CHOSEN
BASE = ModelConfig(
    90, 32, 2, context_length=40, num_heads=4, num_kv_heads=2, head_dim=12, ffn_dim=40
)
BOTH: dict[str, Any] = {"causal": False, "head": None, "norm": "layernorm"}
MOE: dict[str, Any] = {"per_token": 3, "ffn_dim": 20}
LATENT = LatentAttention(kv_rank=10, q_rank=14, rope_dim=4, value_dim=6)
YARN = RopeScaling("yarn", 4.0, original_length=8)
PAIRS = tuple(1.0 + 0.1 * i for i in range(6)), tuple(2.0 + 0.3 * i for i in range(6))
LONGROPE: dict[str, Any] = dict(short_factors=PAIRS[0], long_factors=PAIRS[1])
OPTIONS: dict[str, dict[str, Any]] = {
    "most of a decoder": dict(
        rope_fraction=0.5, rope_interleaved=True, rope_theta=500.0, rope_theta_local=30.0,
        rope_scaling=RopeScaling("llama3", 4.0, 8, 1.0, 4.0), attention_windows=(5, None),
        attention_scale=0.4, attention_soft_cap=2.0, qk_norm="head", qkv_bias=True,
        attention_out_bias=True, norm_placement="sandwich", norm_unit_offset=True,
        norm_eps=1e-2, mlp="geglu_tanh", mlp_bias=True, tie_embeddings=False, head_bias=True,
        embedding_norm=True, embedding_scale=1.7, logit_scale=0.6, logit_soft_cap=3.0,
    ),
    "alibi, one key head": dict(
        position="alibi", num_heads=6, num_kv_heads=1, head_dim=10, block="parallel_two_norms",
        norm="layernorm", norm_bias=False, mlp="relu", mlp_bias=True, final_norm=False,
    ),
    "learned": dict(
        position="learned", norm_placement="post", norm="layernorm", qk_norm="full",
        mlp="gelu_tanh", num_kv_heads=4,
    ),
    "relative": dict(
        position="relative", relative_buckets=8, relative_max_distance=12, mlp="reglu",
        norm_placement="output", attention_windows=(9,),
    ),
    "linear": dict(rope_scaling=RopeScaling("linear", 3.0), mlp="gelu", block="parallel"),
    "yarn": dict(rope_scaling=YARN, mlp="geglu", num_kv_heads=4),
    "longrope": dict(rope_scaling=RopeScaling("longrope", 4.0, 12, **LONGROPE)),
    "none": dict(position="none", mlp="silu"),
    "experts": dict(experts=Experts(6, router="softmax_chosen", scale=1.3, **MOE)),
    "experts in groups": dict(
        experts=Experts(
            8, router="sigmoid", router_bias=True, groups=4, groups_per_token=2,
            group_score="top2", shared_ffn_dim=24, shared_gate=True, dense_layers=(0,), **MOE,
        )
    ),
    "plain experts": dict(
        mlp="gelu", experts=Experts(6, normalize=False, groups=3, groups_per_token=2, **MOE)
    ),
    "latent": dict(
        num_kv_heads=4, latent=LATENT, rope_scaling=YARN, rope_interleaved=True,
        attention_out_bias=True, attention_windows=(None, 6),
    ),
    "latent, queries straight": dict(
        num_kv_heads=4, latent=replace(LATENT, q_rank=None, value_dim=None)
    ),
    "encoder": dict(
        **BOTH, token_types=3, position="learned", attention_windows=(4, None), pooling="mean"
    ),
    "encoder, relative": dict(
        **BOTH, position="relative", relative_buckets=8, relative_max_distance=12, pooling="cls"
    ),
    "masked, next sentence": dict(
        **BOTH | {"head": "mlm"}, pooler=True, next_sentence=True, first_attn_norm=False,
        mlp_bias=True, tie_embeddings=False,
    ),
    "labels of texts": dict(**BOTH, pooler=True, classifier=Classifier(("a", "b", "c"))),
    "labels of tokens": dict(**BOTH, classifier=Classifier(("a", "b"), "token")),
    "labels by a decoder": dict(classifier=Classifier(("a", "b")), pooling="cls"),
    "encoder and decoder": dict(
        encoder=Encoder(1), norm="layernorm", norm_placement="post", qk_norm="head",
        qkv_bias=True, attention_out_bias=True, attention_soft_cap=2.0,
    ),
}  # fmt: skip
CASES = {
    **{f"family {name}": lambda row=row: preset(row).tiny for name, row in FAMILIES.items()},
    **{name: lambda changes=changes: BASE.replace(**changes) for name, changes in OPTIONS.items()},
}
