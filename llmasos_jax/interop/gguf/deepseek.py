"""DeepSeek-V2 and V3 in GGUF."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.interop.gguf.rope import read_scaling
from llmasos_jax.interop.gguf.source import MOST_EXPERTS, Source, common


def read_deepseek(source: Source) -> dict[str, Any]:
    """DeepSeek-V2 and V3: latent attention, and experts after some plain layers.

    Raises:
      FormatError: a key is missing, wrong, or asks for something that is not computed here.
    """
    keys, fields = source.keys, common(source)
    turned = keys.integer("rope.dimension_count")
    theta = keys.number("rope.freq_base", 10000.0)
    # The converter describes the heads after a product of weights that it does not make; the
    # model's own widths have keys of their own, or are in the older keys where those are absent.
    width = keys.integer("attention.key_length_mla", keys.integer("attention.key_length"))
    value = keys.integer("attention.value_length_mla", keys.integer("attention.value_length"))
    eps = keys.number("attention.layer_norm_rms_epsilon")
    scaling = read_scaling(keys, source.tensors, theta, turned, fields["context_length"])
    scale = None
    if scaling.kind == "yarn":
        # DeepSeek multiplies the scores, not sine and cosine.
        log_multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
        scale = (1.0 + log_multiplier * math.log(scaling.factor)) ** 2 / math.sqrt(width)
        scaling = dataclasses.replace(scaling, attention_factor=1.0)
    q_rank = keys.integer("attention.q_lora_rank", 0, least=0) or None
    return {
        **fields,
        "num_kv_heads": fields["num_heads"],
        "head_dim": width,
        "ffn_dim": keys.integer("feed_forward_length"),
        "norm_eps": eps,
        "rope_theta": theta,
        "rope_interleaved": True,
        "rope_scaling": scaling,
        "attention_scale": scale,
        "latent": LatentAttention(
            kv_rank=keys.integer("attention.kv_lora_rank"),
            q_rank=q_rank,
            rope_dim=turned,
            value_dim=None if value == width else value,
            norm_eps=eps,
        ),
        "experts": _deepseek_experts(source, fields["num_layers"]),
    }


def _deepseek_experts(source: Source, layers: int) -> Experts:
    keys = source.keys
    dense = keys.integer("leading_dense_block_count", 0, least=0, most=layers)
    count = keys.integer("expert_count", 0, least=0, most=MOST_EXPERTS)
    width = keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length"))
    shared = keys.integer("expert_shared_count", 0, least=0)
    if not count or dense == layers:
        for name in ("expert_used_count", "expert_weights_scale", "expert_weights_norm"):
            if keys.has(name):
                raise keys.error(f"{keys.arch}.{name} is set and no layer has experts")
        return Experts()
    is_sigmoid = keys.integer("expert_gating_func", 1, least=0, most=2) == 2
    groups = keys.integer("expert_group_count", 1, least=0) or 1
    chosen = keys.integer("expert_group_used_count", groups, least=0) or groups
    # Where the router cannot leave a group out, groups say nothing.
    groups, chosen = (1, 1) if chosen == groups else (groups, chosen)
    return Experts(
        count=count,
        per_token=keys.integer("expert_used_count"),
        ffn_dim=width,
        dense_layers=tuple(range(dense)),
        router="sigmoid" if is_sigmoid else "softmax",
        normalize=keys.flag("expert_weights_norm", False),
        scale=keys.number("expert_weights_scale", 1.0) or 1.0,
        router_bias=f"blk.{dense}.exp_probs_b.bias" in source.tensors,
        groups=groups,
        groups_per_token=chosen,
        # DeepSeek-V3 ranks groups by their best two experts, V2 by the best one.
        group_score="top2" if is_sigmoid else "max",
        shared_ffn_dim=shared * width,
    )
