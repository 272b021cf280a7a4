"""T5, its second version, Flan-T5 and mT5: encoder-decoders with relative positions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.zoo.preset import Preset

RELEASED = "released weights"

# Section 2.1 of the paper: RMSNorm before each sublayer, no biases, one table of relative positions
# for the blocks of a stack. Scores are not scaled: the initialisation of the queries is. Trained on
# 512 tokens; the positions themselves have no limit.
_T5 = partial(
    ModelConfig,
    context_length=512,
    norm_eps=1e-6,
    position="relative",
    attention_scale=1.0,
)
# The first version: ReLU, and logits from the embedding table times 1 / sqrt(D).
_FIRST = partial(_T5, 32128, mlp="relu")
# The second (README of version 1.1, after Shazeer, 2020): GEGLU, an output layer of its own.
_SECOND = partial(_T5, mlp="geglu_tanh", tie_embeddings=False)

# Name, width, layers of each stack, heads, head width, MLP width, parameters. In the two largest
# the heads together are wider than the stream.
_FIRST_SIZES = (
    ("t5-small", 512, 6, 8, 64, 2048, 60_506_624),
    ("t5-base", 768, 12, 12, 64, 3072, 222_903_552),
    ("t5-large", 1024, 24, 16, 64, 4096, 737_668_096),
    ("t5-3b", 1024, 24, 32, 128, 16384, 2_851_598_336),
    ("t5-11b", 1024, 24, 128, 128, 65536, 11_307_321_344),
)
# Size, width, layers, heads, MLP width, parameters with T5's vocabulary and with mT5's.
_SECOND_SIZES = (
    ("small", 512, 8, 6, 1024, 76_961_152, 300_176_768),
    ("base", 768, 12, 12, 2048, 247_577_856, 582_401_280),
    ("large", 1024, 24, 16, 2816, 783_150_080, 1_229_581_312),
    ("xl", 2048, 24, 32, 5120, 2_849_757_184, 3_742_619_648),
    ("xxl", 4096, 24, 64, 10240, 11_135_332_352, 12_921_057_280),
)
# Name, paper, rows of the vocabulary, tokens that it was trained on at a time.
_SECOND_NAMES = (
    ("t5-v1_1", "2002.05202", 32128, 512),
    ("flan-t5", "2210.11416", 32128, 512),
    ("mt5", "2010.11934", 250_112, 1024),
)


def presets() -> Iterator[Preset]:
    """The families' presets, in the order of their papers."""
    for name, width, layers, heads, head_dim, ffn, count in _FIRST_SIZES:
        cfg = _FIRST(width, layers, encoder=Encoder(layers), num_heads=heads, ffn_dim=ffn)
        cfg = cfg.replace(head_dim=head_dim, logit_scale=width**-0.5)
        yield Preset(name, "T5", cfg, "1910.10683", count, RELEASED)
    for stem, paper, vocab, length in _SECOND_NAMES:
        for size, width, layers, heads, ffn, count, count_mt5 in _SECOND_SIZES:
            cfg = _SECOND(vocab, width, layers, encoder=Encoder(layers), context_length=length)
            cfg = cfg.replace(num_heads=heads, head_dim=64, ffn_dim=ffn)
            published = count_mt5 if stem == "mt5" else count
            yield Preset(f"{stem}-{size}", "T5", cfg, paper, published, RELEASED)
