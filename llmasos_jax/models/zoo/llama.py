"""LLaMA and what follows its block: SmolLM2, OLMo 2, Mistral, Mixtral, Phi-3."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.models.zoo.preset import Preset

RELEASED = "released weights"

_UNTIED = partial(ModelConfig, tie_embeddings=False)
_LLAMA3 = partial(ModelConfig, 128256, rope_theta=500_000.0)
_OLMO2 = partial(
    _UNTIED,
    100_352,
    context_length=4096,
    norm_eps=1e-6,
    norm_placement="output",
    qk_norm="full",
    rope_theta=500_000.0,
)

# Name, width, layers, heads, MLP width, norm epsilon, parameters.
_LLAMA1 = (
    ("llama-7b", 4096, 32, 32, 11008, 1e-6, 6_738_415_616),
    ("llama-13b", 5120, 40, 40, 13824, 1e-6, 13_015_864_320),
    ("llama-30b", 6656, 60, 52, 17920, 1e-6, 32_528_943_616),
    ("llama-65b", 8192, 80, 64, 22016, 1e-5, 65_285_660_672),
)
# Name, width, layers, heads, key/value heads, MLP width, parameters.
_LLAMA2 = (
    ("llama-2-7b", 4096, 32, 32, 32, 11008, 6_738_415_616),
    ("llama-2-13b", 5120, 40, 40, 40, 13824, 13_015_864_320),
    ("llama-2-70b", 8192, 80, 64, 8, 28672, 68_976_648_192),
)
# Name, width, layers, heads, MLP width, context, factor of rotary scaling (0: none), parameters.
_LLAMA3_SIZES = (
    ("llama-3-8b", 4096, 32, 32, 14336, 8192, 0.0, 8_030_261_248),
    ("llama-3-70b", 8192, 80, 64, 28672, 8192, 0.0, 70_553_706_496),
    ("llama-3.1-8b", 4096, 32, 32, 14336, 131_072, 8.0, 8_030_261_248),
    ("llama-3.1-70b", 8192, 80, 64, 28672, 131_072, 8.0, 70_553_706_496),
    ("llama-3.1-405b", 16384, 126, 128, 53248, 131_072, 8.0, 405_853_388_800),
    ("llama-3.2-1b", 2048, 16, 32, 8192, 131_072, 32.0, 1_235_814_400),
    ("llama-3.2-3b", 3072, 28, 24, 8192, 131_072, 32.0, 3_212_749_824),
)
# Name, width, layers, heads, key/value heads, MLP width, rotary base, parameters.
_SMOLLM2 = (
    ("smollm2-135m", 576, 30, 9, 3, 1536, 100_000.0, 134_515_008),
    ("smollm2-360m", 960, 32, 15, 5, 2560, 100_000.0, 361_821_120),
    ("smollm2-1.7b", 2048, 24, 32, 32, 8192, 130_000.0, 1_711_376_384),
)
# Name, width, layers, heads, key/value heads, MLP width, parameters.
_OLMO2_SIZES = (
    ("olmo-2-1b", 2048, 16, 16, 16, 8192, 1_484_916_736),
    ("olmo-2-7b", 4096, 32, 32, 32, 11008, 7_298_617_344),
    ("olmo-2-13b", 5120, 40, 40, 40, 13824, 13_716_198_400),
    ("olmo-2-32b", 5120, 64, 40, 8, 27648, 32_234_279_936),
)
# Name, rows of the vocabulary, window, rotary base, parameters.
_MISTRAL = (
    ("mistral-7b", 32000, 4096, 10_000.0, 7_241_732_096),
    ("mistral-7b-instruct", 32000, None, 1_000_000.0, 7_241_732_096),  # v0.2: no window
    ("mistral-7b-v0.3", 32768, None, 1_000_000.0, 7_248_023_552),
)
# Name, width, layers, heads, MLP width, context, parameters.
_MIXTRAL = (
    ("mixtral-8x7b", 4096, 32, 32, 14336, 32768, 46_702_792_704),
    ("mixtral-8x22b", 6144, 56, 48, 16384, 65536, 140_620_634_112),
)
# Name, width, layers, heads, key/value heads, MLP width, parameters. The versions with a context
# of 4,096; those with 128k have two lists of rotary factors, which come with their config.json.
_PHI3 = (
    ("phi-3-mini-4k", 3072, 32, 32, 32, 8192, 3_821_079_552),
    ("phi-3-medium-4k", 5120, 40, 40, 10, 17920, 13_960_238_080),
)


def presets() -> Iterator[Preset]:
    """The family's presets, in the order of their papers."""
    yield from _llama()
    for name, vocab, window, theta, count in _MISTRAL:
        cfg = _UNTIED(vocab, 4096, 32, 32768, 32, 8, ffn_dim=14336, rope_theta=theta)
        cfg = cfg.replace(attention_windows=(window,))
        yield Preset(name, "Mistral", cfg, "2310.06825", count, RELEASED)
    for name, width, layers, heads, ffn, context, count in _MIXTRAL:
        experts = Experts(8, 2, router="softmax_chosen")
        cfg = _UNTIED(32000, width, layers, context, heads, 8, ffn_dim=ffn, rope_theta=1_000_000.0)
        cfg = cfg.replace(experts=experts)
        yield Preset(name, "Mixtral", cfg, "2401.04088", count, RELEASED)
    for name, width, layers, heads, kv_heads, ffn, count in _PHI3:
        cfg = _UNTIED(32064, width, layers, 4096, heads, kv_heads, ffn_dim=ffn)
        cfg = cfg.replace(attention_windows=(2047,))
        yield Preset(name, "Phi", cfg, "2404.14219", count, RELEASED)
    for name, width, layers, heads, kv_heads, ffn, count in _OLMO2_SIZES:
        cfg = _OLMO2(width, layers, num_heads=heads, num_kv_heads=kv_heads, ffn_dim=ffn)
        yield Preset(name, "OLMo", cfg, "2501.00656", count, RELEASED)
    for name, width, layers, heads, kv_heads, ffn, theta, count in _SMOLLM2:
        cfg = ModelConfig(49152, width, layers, 8192, heads, kv_heads, ffn_dim=ffn)
        yield Preset(name, "SmolLM", cfg.replace(rope_theta=theta), "2502.02737", count, RELEASED)


def _llama() -> Iterator[Preset]:
    for name, width, layers, heads, ffn, eps, count in _LLAMA1:
        cfg = _UNTIED(32000, width, layers, 2048, heads, ffn_dim=ffn, norm_eps=eps)
        yield Preset(name, "LLaMA", cfg, "2302.13971", count, RELEASED)
    for name, width, layers, heads, kv_heads, ffn, count in _LLAMA2:
        cfg = _UNTIED(32000, width, layers, 4096, heads, kv_heads, ffn_dim=ffn)
        yield Preset(name, "LLaMA", cfg, "2307.09288", count, RELEASED)
    for name, width, layers, heads, ffn, context, factor, count in _LLAMA3_SIZES:
        cfg = _LLAMA3(width, layers, context, heads, 8, ffn_dim=ffn)
        cfg = cfg.replace(tie_embeddings=name.startswith("llama-3.2"))
        if factor:
            cfg = cfg.replace(rope_scaling=RopeScaling("llama3", factor, original_length=8192))
        yield Preset(name, "LLaMA", cfg, "2407.21783", count, RELEASED)
