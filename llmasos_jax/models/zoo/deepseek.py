"""DeepSeek-V2 and V3: latent attention, many small experts beside a shared one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.models.zoo.preset import Preset

RELEASED = "released weights"

_HEAD_DIM = 192  # 128 numbers without positions, 64 rotated ones
_FACTOR = 40.0

_DEEPSEEK = partial(
    ModelConfig,
    context_length=163_840,
    head_dim=_HEAD_DIM,
    norm_eps=1e-6,
    rope_interleaved=True,
    # Sine and cosine are left alone; the same stretch multiplies the scores, squared: `_scale`.
    rope_scaling=RopeScaling("yarn", _FACTOR, 4096, attention_factor=1.0),
    tie_embeddings=False,
)


def _scale(share: float) -> float:
    """The scale of scores: 1 / sqrt(H), times the square of yarn's stretch (`mscale_all_dim`)."""
    return _HEAD_DIM**-0.5 * (0.1 * share * math.log(_FACTOR) + 1.0) ** 2


def presets() -> Iterator[Preset]:
    """The presets, in the order of their papers. Without V3's heads for several tokens ahead."""
    lite = _DEEPSEEK(102_400, 2048, 27, num_heads=16, ffn_dim=10944).replace(
        attention_scale=_scale(0.707),
        latent=LatentAttention(512, None, 64, 128),
        experts=Experts(64, 6, 1408, (0,), normalize=False, shared_ffn_dim=2 * 1408),
    )
    v2 = _DEEPSEEK(102_400, 5120, 60, num_heads=128, ffn_dim=12288).replace(
        attention_scale=_scale(0.707),
        latent=LatentAttention(512, 1536, 64, 128),
        experts=Experts(
            160,
            6,
            1536,
            (0,),
            normalize=False,
            scale=16.0,
            groups=8,
            groups_per_token=3,
            shared_ffn_dim=2 * 1536,
        ),
    )
    v3 = _DEEPSEEK(129_280, 7168, 61, num_heads=128, ffn_dim=18432).replace(
        attention_scale=_scale(1.0),
        latent=LatentAttention(512, 1536, 64, 128),
        experts=Experts(
            256,
            8,
            2048,
            (0, 1, 2),
            router="sigmoid",
            scale=2.5,
            router_bias=True,
            groups=8,
            groups_per_token=4,
            group_score="top2",
            shared_ffn_dim=2048,
        ),
    )
    yield Preset("deepseek-v2-lite", "DeepSeek", lite, "2405.04434", 15_706_484_224, RELEASED)
    yield Preset("deepseek-v2", "DeepSeek", v2, "2405.04434", 235_741_434_880, RELEASED)
    yield Preset("deepseek-v3", "DeepSeek", v3, "2412.19437", "671B", "abstract")
