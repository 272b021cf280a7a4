"""Tiny models of every architecture and variant that GGUF files are read of."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling

GELU = 5e-3
V = 288  # 3 control tokens, 256 bytes, some letters
Params = dict[str, np.ndarray]


@dataclass(frozen=True)
class Twin:
    """A model and how a GGUF file says it.

    Attributes:
      arch: as "general.architecture" says.
      cfg: the model, as its folder would describe it.
      keys: metadata of this architecture alone, beside those that all have.
      tensors: extra tensors.
      tolerance: of llama.cpp's logits, which look up GELU in a table of float16; None where it
        computes something else.
      is_older: whether each expert has tensors of its own.
    """

    arch: str
    cfg: ModelConfig
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: Params = field(default_factory=dict)
    tolerance: float | None = 1e-4
    is_older: bool = False


def model(**changes: Any) -> ModelConfig:
    """A small model like LLaMA, with every width said."""
    fields: dict[str, Any] = {
        **{"vocab_size": V, "embedding_dim": 32, "num_layers": 2, "context_length": 64},
        **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 48},
    }
    return ModelConfig(**(fields | changes))


def wide_twins() -> dict[str, Twin]:
    """Models whose rows are whole blocks of K types, so that whole files have one."""
    sizes: dict[str, Any] = {"embedding_dim": 256, "head_dim": 64, "ffn_dim": 512, "num_layers": 1}
    experts = Experts(count=4, per_token=2, ffn_dim=256)
    return {
        "llama-wide": Twin("llama", model(**sizes, tie_embeddings=False)),
        "qwen3moe-wide": Twin("qwen3moe", model(**sizes, qk_norm="head", experts=experts)),
    }


_LONG = tuple(round(1 + 0.7 * i, 2) for i in range(4))
_SHORT = tuple(round(1 + 0.1 * i, 2) for i in range(4))
_GEMMA = {
    "mlp": "geglu_tanh",
    "norm_unit_offset": True,
    "embedding_scale": math.sqrt(32),
    "norm_eps": 1e-6,
}
_LAYER_NORM = {
    **{"norm": "layernorm", "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "num_kv_heads": 4,
}
_LATENT: dict[str, Any] = {
    **{"num_layers": 3, "num_kv_heads": 4, "head_dim": 12, "rope_interleaved": True},
    **{"norm_eps": 1e-6, "tie_embeddings": False},
}
_V2_KEYS = {
    **{"attention.kv_lora_rank": 16, "attention.key_length": 20, "attention.value_length": 16},
    **{"attention.key_length_mla": 12, "attention.value_length_mla": 8, "rope.dimension_count": 4},
    **{"leading_dense_block_count": 1, "expert_feed_forward_length": 24, "expert_count": 8},
    **{"expert_used_count": 2, "expert_shared_count": 2, "attention.head_count_kv": 1},
}
_GATED = {"expert_feed_forward_length": 24, "expert_count": 6, "expert_used_count": 3}
_CFG_YARN = RopeScaling("yarn", 4.0, original_length=16, beta_fast=8.0)


def llama3_factors(theta: float, width: int) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.2: factor 32, float32 throughout."""
    freqs = np.float32(1) / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / width)
    found = []
    for freq in freqs:
        length = 2 * math.pi / float(freq)
        smooth = (8192 / length - 1.0) / 3.0
        blend = 1 / ((1 - smooth) / 32.0 + smooth) if 2048 <= length <= 8192 else 1.0
        found.append(32.0 if length > 8192 else blend)
    return np.array(found, np.float32)


TWINS = {
    "llama": Twin("llama", model()),
    "llama-untied-biases": Twin(
        "llama",
        model(
            **{"tie_embeddings": False, "qkv_bias": True, "attention_out_bias": True},
            mlp_bias=True,
        ),
    ),
    "llama-3.2": Twin(
        "llama",
        model(
            head_dim=16,
            rope_theta=5e5,
            rope_scaling=RopeScaling("llama3", 32.0, original_length=8192),
        ),
        tensors={"rope_freqs.weight": llama3_factors(5e5, 16)},
    ),
    "llama-other-factors": Twin(
        "llama",
        model(
            rope_scaling=RopeScaling(
                "longrope",
                original_length=64,
                attention_factor=1.0,
                short_factors=_LONG,
                long_factors=_LONG,
            )
        ),
        tensors={"rope_freqs.weight": np.array(_LONG, np.float32)},
    ),
    "llama-linear": Twin(
        "llama",
        model(rope_scaling=RopeScaling("linear", 4.0)),
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "mixtral": Twin(
        "llama",
        model(
            num_layers=2,
            tie_embeddings=False,
            experts=Experts(count=4, per_token=2, ffn_dim=48, router="softmax_chosen"),
        ),
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "mixtral-older": Twin(
        "llama",
        model(experts=Experts(count=4, per_token=2, ffn_dim=48, router="softmax_chosen")),
        {"expert_count": 4, "expert_used_count": 2},
        tolerance=None,  # llama.cpp reads it no more
        is_older=True,
    ),
    "qwen2": Twin("qwen2", model(qkv_bias=True, rope_theta=1e6, norm_eps=1e-6)),
    "qwen2-yarn": Twin(
        "qwen2",
        model(qkv_bias=True, tie_embeddings=False, rope_scaling=_CFG_YARN),
        {
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 8.0},
        },
    ),
    "qwen3": Twin("qwen3", model(qk_norm="head", head_dim=16, rope_theta=1e6)),
    "qwen2moe": Twin(
        "qwen2moe",
        model(
            qkv_bias=True,
            tie_embeddings=False,
            experts=Experts(
                **{"count": 6, "per_token": 3, "ffn_dim": 24, "normalize": False},
                **{"shared_ffn_dim": 40, "shared_gate": True},
            ),
        ),
        {**_GATED, "expert_shared_feed_forward_length": 40},
    ),
    "qwen3moe": Twin(
        "qwen3moe",
        model(
            qk_norm="head",
            tie_embeddings=False,
            experts=Experts(count=6, per_token=3, ffn_dim=24),
        ),
        _GATED,
    ),
    "gemma": Twin("gemma", model(**_GEMMA, num_kv_heads=1), tolerance=GELU),
    "gemma2": Twin(
        "gemma2",
        model(
            **_GEMMA,
            norm_placement="sandwich",
            attention_windows=(4, None),
            attention_soft_cap=50.0,
            logit_soft_cap=30.0,
            attention_scale=8**-0.5,
        ),
        {
            **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            "attention.sliding_window": 4,
        },
        tolerance=GELU,
    ),
    "gemma3": Twin(
        "gemma3",
        model(
            **_GEMMA,
            num_layers=6,
            norm_placement="sandwich",
            qk_norm="head",
            attention_windows=(4,) * 5 + (None,),
            attention_scale=8**-0.5,
            rope_theta=1e6,
            rope_theta_local=1e4,
            rope_scaling=RopeScaling("linear", 8.0),
        ),
        {
            **{"attention.sliding_window": 4, "rope.scaling.type": "linear"},
            "rope.scaling.factor": 8.0,
        },
        tolerance=GELU,
    ),
    "phi3": Twin(
        "phi3",
        model(tie_embeddings=False),
        {"attention.sliding_window": 0, "rope.scaling.original_context_length": 64},
    ),
    "phi3-longrope": Twin(
        "phi3",
        model(
            tie_embeddings=False,
            rope_scaling=RopeScaling(
                "longrope", 8.0, original_length=8, short_factors=_SHORT, long_factors=_LONG
            ),
        ),
        {
            **{"attention.sliding_window": 0, "rope.scaling.original_context_length": 8},
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(8) / math.log(8)),
        },
        tensors={
            "rope_factors_long.weight": np.array(_LONG, np.float32),
            "rope_factors_short.weight": np.array(_SHORT, np.float32),
        },
    ),
    "phi3-window": Twin(
        "phi3",
        model(tie_embeddings=False, attention_windows=(4,), rope_fraction=0.75),
        {"attention.sliding_window": 4, "rope.scaling.original_context_length": 64},
        tolerance=None,  # llama.cpp leaves the window out
    ),
    "gpt2": Twin(
        "gpt2",
        model(**_LAYER_NORM, position="learned", mlp="gelu_tanh"),
        tolerance=GELU,
    ),
    "gptneox": Twin(
        "gptneox",
        model(
            **_LAYER_NORM,
            block="parallel_two_norms",
            mlp="gelu",
            rope_fraction=0.5,
            tie_embeddings=False,
        ),
        {"use_parallel_residual": True},
        tolerance=None,  # llama.cpp takes the tanh form of GELU, the models were trained with erf
    ),
    "olmo2": Twin("olmo2", model(norm_placement="output", qk_norm="full", tie_embeddings=False)),
    "olmo3": Twin(
        "olmo2",
        model(
            num_layers=4,
            norm_placement="output",
            qk_norm="full",
            tie_embeddings=False,
            attention_windows=(4, 4, 4, None),
            rope_theta_local=1e4,
            rope_scaling=_CFG_YARN,
        ),
        {
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 8.0},
            "rope.scaling.yarn_attn_factor": 0.1 * math.log(4) + 1,
            "attention.sliding_window": 4,
            "attention.sliding_window_pattern": [True, True, True, False],
        },
    ),
    "deepseek-v2-lite": Twin(
        "deepseek2",
        model(
            **_LATENT,
            latent=LatentAttention(kv_rank=16, rope_dim=4, value_dim=8),
            rope_scaling=RopeScaling("yarn", 4.0, original_length=16, attention_factor=1.0),
            attention_scale=(1 + 0.0707 * math.log(4)) ** 2 / math.sqrt(12),
            experts=Experts(
                **{"count": 8, "per_token": 2, "ffn_dim": 24, "dense_layers": (0,)},
                **{"normalize": False, "scale": 1.5, "shared_ffn_dim": 48},
            ),
        ),
        {
            **_V2_KEYS,
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "expert_weights_scale": 1.5},
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
        tolerance=None,  # llama.cpp takes no other number of layers than the published one
    ),
    "deepseek-v2": Twin(
        "deepseek2",
        model(
            **_LATENT,
            latent=LatentAttention(kv_rank=16, q_rank=24, rope_dim=4, value_dim=8),
            rope_scaling=RopeScaling("yarn", 4.0, original_length=16, attention_factor=1.0),
            attention_scale=(1 + 0.0707 * math.log(4)) ** 2 / math.sqrt(12),
            experts=Experts(
                **{"count": 8, "per_token": 2, "ffn_dim": 24, "dense_layers": (0,)},
                **{"normalize": False, "scale": 1.5, "shared_ffn_dim": 48},
            ),
        ),
        {
            **_V2_KEYS,
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "expert_weights_scale": 1.5},
            **{"rope.scaling.yarn_log_multiplier": 0.0707, "attention.q_lora_rank": 24},
        },
    ),
    "deepseek-v3": Twin(
        "deepseek2",
        model(
            **_LATENT,
            latent=LatentAttention(kv_rank=16, q_rank=24, rope_dim=4, value_dim=8),
            experts=Experts(
                **{"count": 8, "per_token": 2, "ffn_dim": 24, "dense_layers": (0,)},
                **{"router": "sigmoid", "scale": 2.5, "router_bias": True, "groups": 4},
                **{"groups_per_token": 2, "group_score": "top2", "shared_ffn_dim": 48},
            ),
        ),
        {
            **_V2_KEYS,
            **{"attention.q_lora_rank": 24, "expert_weights_scale": 2.5, "expert_gating_func": 2},
            **{"expert_weights_norm": True, "expert_group_count": 4, "expert_group_used_count": 2},
        },
    ),
    "bert": Twin(
        "bert",
        model(
            **_LAYER_NORM,
            position="learned",
            mlp="gelu",
            causal=False,
            head=None,
            norm_placement="post",
            embedding_norm=True,
            final_norm=False,
            token_types=2,
        ),
        {"attention.causal": False, "pooling_type": 1},
        tolerance=None,  # llama.cpp gives its embeddings alone
    ),
}
