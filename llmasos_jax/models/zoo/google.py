"""PaLM and Gemma."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.models.zoo.preset import Preset

RELEASED = "released weights"

# Section 2 of the paper: parallel block, one key/value head, SwiGLU of width 4 D, no biases in
# products or norms, shared embeddings; section 5: logits times 1 / sqrt(D).
_PALM = partial(
    ModelConfig,
    256_000,
    norm="layernorm",
    norm_bias=False,
    num_kv_heads=1,
    head_dim=256,
    block="parallel",
)
_GEMMA = partial(
    ModelConfig, norm_eps=1e-6, norm_unit_offset=True, mlp="geglu_tanh", context_length=8192
)

# Name, width, layers, heads, what table 1 prints.
_PALM_SIZES = (
    ("palm-8b", 4096, 32, 16, "8.63B"),
    ("palm-62b", 8192, 64, 32, "62.50B"),
    ("palm-540b", 18432, 118, 48, "540.35B"),
)
# Name, width, layers, heads, key/value heads, MLP width, parameters.
_GEMMA1 = (
    ("gemma-2b", 2048, 18, 8, 1, 16384, 2_506_172_416),
    ("gemma-7b", 3072, 28, 16, 16, 24576, 8_537_680_896),
)
# Name, width, layers, heads, key/value heads, head width, MLP width, what 1 / scale^2 is (256 is
# the head width; 27B divides by the square root of D / N), parameters.
_GEMMA2 = (
    ("gemma-2-2b", 2304, 26, 8, 4, 256, 9216, 256, 2_614_341_888),
    ("gemma-2-9b", 3584, 42, 16, 8, 256, 14336, 256, 9_241_705_984),
    ("gemma-2-27b", 4608, 46, 32, 16, 128, 36864, 144, 27_227_128_320),
)
# Name, rows of the vocabulary, width, layers, heads, key/value heads, head width, MLP width,
# 1 / scale^2, window, context, parameters. Of the sizes that also see, the text part: table 1
# prints its numbers beside the embedding.
_GEMMA3 = (
    ("gemma-3-270m", 262_144, 640, 18, 4, 1, 256, 2048, 256, 512, 32768, 268_098_176),
    ("gemma-3-1b", 262_144, 1152, 26, 4, 1, 256, 6912, 256, 512, 32768, 999_885_952),
    ("gemma-3-4b", 262_208, 2560, 34, 8, 4, 256, 10240, 256, 1024, 131_072, "3,209M"),
    ("gemma-3-12b", 262_208, 3840, 48, 16, 8, 256, 15360, 256, 1024, 131_072, "10,759M"),
    ("gemma-3-27b", 262_208, 5376, 62, 32, 16, 128, 21504, 168, 1024, 131_072, "25,600M"),
)


def presets() -> Iterator[Preset]:
    """The families' presets, in the order of their papers."""
    for name, width, layers, heads, figure in _PALM_SIZES:
        cfg = _PALM(width, layers, num_heads=heads, ffn_dim=4 * width, logit_scale=width**-0.5)
        yield Preset(name, "PaLM", cfg, "2204.02311", figure, "table 1")
    for name, width, layers, heads, kv_heads, ffn, count in _GEMMA1:
        cfg = _GEMMA(256_000, width, layers, num_heads=heads, num_kv_heads=kv_heads, head_dim=256)
        cfg = cfg.replace(ffn_dim=ffn, embedding_scale=width**0.5)
        yield Preset(name, "Gemma", cfg, "2403.08295", count, RELEASED)
    yield from _gemma2()
    yield from _gemma3()


def _gemma2() -> Iterator[Preset]:
    for name, width, layers, heads, kv_heads, head_dim, ffn, square, count in _GEMMA2:
        cfg = _GEMMA(256_000, width, layers, num_heads=heads, num_kv_heads=kv_heads, ffn_dim=ffn)
        cfg = cfg.replace(
            head_dim=head_dim,
            embedding_scale=width**0.5,
            norm_placement="sandwich",
            attention_scale=square**-0.5,
            attention_windows=(4096, None),
            attention_soft_cap=50.0,
            logit_soft_cap=30.0,
        )
        yield Preset(name, "Gemma", cfg, "2408.00118", count, RELEASED)


def _gemma3() -> Iterator[Preset]:
    for name, vocab, width, layers, heads, kv_heads, head_dim, ffn, square, w, t, figure in _GEMMA3:
        cfg = _GEMMA(vocab, width, layers, num_heads=heads, num_kv_heads=kv_heads, ffn_dim=ffn)
        cfg = cfg.replace(
            context_length=t,
            head_dim=head_dim,
            embedding_scale=width**0.5,
            norm_placement="sandwich",
            attention_scale=square**-0.5,
            attention_windows=(w, w, w, w, w, None),
            qk_norm="head",
            rope_theta=1_000_000.0,
            rope_theta_local=10_000.0,
        )
        is_text = isinstance(figure, int)
        if not is_text:
            cfg = cfg.replace(rope_scaling=RopeScaling("linear", 8.0))
        where = RELEASED if is_text else "table 1"
        yield Preset(name, "Gemma", cfg, "2503.19786", figure, where, not is_text)
