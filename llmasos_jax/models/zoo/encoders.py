"""BERT, RoBERTa and ModernBERT, with the heads that were trained with them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.zoo.preset import Preset

_BERT = partial(
    ModelConfig,
    context_length=512,
    causal=False,
    head="mlm",
    norm="layernorm",
    norm_eps=1e-12,
    norm_placement="post",
    final_norm=False,
    embedding_norm=True,
    token_types=2,
    position="learned",
    qkv_bias=True,
    attention_out_bias=True,
    mlp="gelu",
    mlp_bias=True,
)
_MODERNBERT = partial(
    ModelConfig,
    50368,
    context_length=8192,
    causal=False,
    head="mlm",
    norm="layernorm",
    norm_bias=False,
    embedding_norm=True,
    first_attn_norm=False,
    rope_theta=160000.0,
    rope_theta_local=10000.0,
    # "128 tokens" in the paper: 64 on either side of a token, and itself.
    attention_windows=(None, 65, 65),
    mlp="geglu",
)
# Name, rows of the vocabulary, width, layers, heads, what the paper prints of the whole model.
_BERT_SIZES = (
    ("bert-base-uncased", 30522, 768, 12, 12, "110M"),
    ("bert-large-uncased", 30522, 1024, 24, 16, "340M"),
    ("bert-base-cased", 28996, 768, 12, 12, "110M"),
    ("bert-large-cased", 28996, 1024, 24, 16, "340M"),
)
_ROBERTA_SIZES = (
    ("roberta-base", 50265, 768, 12, 12, "125M"),
    ("roberta-large", 50265, 1024, 24, 16, "355M"),
)
# Name, width, layers, heads, width inside the MLP, what the paper prints.
_MODERNBERT_SIZES = (
    ("modernbert-base", 768, 22, 12, 1152, "149M"),
    ("modernbert-large", 1024, 28, 16, 2624, "395M"),
)


def presets() -> Iterator[Preset]:
    """The families' presets, in the order of their papers."""
    for name, vocab, width, layers, heads, figure in _BERT_SIZES:
        cfg = _BERT(vocab, width, layers, num_heads=heads, pooler=True, next_sentence=True)
        yield Preset(name, "BERT", cfg, "1810.04805", figure, "section 3")
    for name, vocab, width, layers, heads, figure in _ROBERTA_SIZES:
        # Its table of positions has two rows more, before the first token's: no token uses them.
        cfg = _BERT(vocab, width, layers, num_heads=heads, norm_eps=1e-5, token_types=1)
        yield Preset(name, "RoBERTa", cfg, "1907.11692", figure, "its README")
    for name, width, layers, heads, ffn, figure in _MODERNBERT_SIZES:
        cfg = _MODERNBERT(width, layers, num_heads=heads, ffn_dim=ffn)
        yield Preset(name, "ModernBERT", cfg, "2412.13663", figure, "section 2.1.2")
