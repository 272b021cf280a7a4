"""Qwen2, Qwen2.5 and Qwen3, dense and with experts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.zoo.preset import Preset

RELEASED = "released weights"

_QWEN = partial(ModelConfig, norm_eps=1e-6, rope_theta=1_000_000.0)
_QWEN3 = partial(_QWEN, 151_936, context_length=40960, head_dim=128, qk_norm="head")

# Name, rows of the vocabulary, width, layers, heads, key/value heads, MLP width, context, whether
# the output layer is the embedding table, parameters.
_QWEN2 = (
    ("qwen2-0.5b", 151_936, 896, 24, 14, 2, 4864, 131_072, True, 494_032_768),
    ("qwen2-1.5b", 151_936, 1536, 28, 12, 2, 8960, 131_072, True, 1_543_714_304),
    ("qwen2-7b", 152_064, 3584, 28, 28, 4, 18944, 131_072, False, 7_615_616_512),
    ("qwen2-72b", 152_064, 8192, 80, 64, 8, 29568, 131_072, False, 72_706_203_648),
)
_QWEN25 = (
    ("qwen2.5-0.5b", 151_936, 896, 24, 14, 2, 4864, 32768, True, 494_032_768),
    ("qwen2.5-1.5b", 151_936, 1536, 28, 12, 2, 8960, 131_072, True, 1_543_714_304),
    ("qwen2.5-3b", 151_936, 2048, 36, 16, 2, 11008, 32768, True, 3_085_938_688),
    ("qwen2.5-7b", 152_064, 3584, 28, 28, 4, 18944, 131_072, False, 7_615_616_512),
    ("qwen2.5-14b", 152_064, 5120, 48, 40, 8, 13824, 131_072, False, 14_770_033_664),
    ("qwen2.5-32b", 152_064, 5120, 64, 40, 8, 27648, 131_072, False, 32_763_876_352),
    ("qwen2.5-72b", 152_064, 8192, 80, 64, 8, 29568, 131_072, False, 72_706_203_648),
)
# Name, width, layers, heads, key/value heads, MLP width, tied, parameters.
_QWEN3_SIZES = (
    ("qwen3-0.6b", 1024, 28, 16, 8, 3072, True, 596_049_920),
    ("qwen3-1.7b", 2048, 28, 16, 8, 6144, True, 1_720_574_976),
    ("qwen3-4b", 2560, 36, 32, 8, 9728, True, 4_022_468_096),
    ("qwen3-8b", 4096, 36, 32, 8, 12288, False, 8_190_735_360),
    ("qwen3-14b", 5120, 40, 40, 8, 17408, False, 14_768_307_200),
    ("qwen3-32b", 5120, 64, 64, 8, 25600, False, 32_762_123_264),
)
# Name, width, layers, heads, MLP width (of no layer), width of one of 128 experts, parameters.
_QWEN3_MOE = (
    ("qwen3-30b-a3b", 2048, 48, 32, 6144, 768, 30_532_122_624),
    ("qwen3-235b-a22b", 4096, 94, 64, 12288, 1536, 235_093_634_560),
)


def presets() -> Iterator[Preset]:
    """The families' presets, in the order of their papers."""
    for paper, rows in (("2407.10671", _QWEN2), ("2412.15115", _QWEN25)):
        for name, vocab, width, layers, heads, kv_heads, ffn, context, tied, count in rows:
            cfg = _QWEN(vocab, width, layers, context, heads, kv_heads, ffn_dim=ffn)
            cfg = cfg.replace(qkv_bias=True, tie_embeddings=tied)
            yield Preset(name, "Qwen", cfg, paper, count, RELEASED)
    yield _qwen2_moe()
    for name, width, layers, heads, kv_heads, ffn, tied, count in _QWEN3_SIZES:
        cfg = _QWEN3(width, layers, num_heads=heads, num_kv_heads=kv_heads, ffn_dim=ffn)
        yield Preset(name, "Qwen", cfg.replace(tie_embeddings=tied), "2505.09388", count, RELEASED)
    for name, width, layers, heads, ffn, expert, count in _QWEN3_MOE:
        cfg = _QWEN3(width, layers, num_heads=heads, num_kv_heads=4, ffn_dim=ffn)
        cfg = cfg.replace(tie_embeddings=False, experts=Experts(128, 8, expert))
        yield Preset(name, "Qwen", cfg, "2505.09388", count, RELEASED)


def _qwen2_moe() -> Preset:
    experts = Experts(
        64, 8, 2560, router="softmax", normalize=False, shared_ffn_dim=20480, shared_gate=True
    )
    cfg = _QWEN(151_936, 3584, 28, 131_072, 28, 4, ffn_dim=18944)
    cfg = cfg.replace(qkv_bias=True, tie_embeddings=False, experts=experts)
    return Preset("qwen2-57b-a14b", "Qwen", cfg, "2407.10671", "57B", "table 1")
