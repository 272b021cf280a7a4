"""BERT and RoBERTa, the trunk: embeddings and blocks, without pooler and heads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.zoo.preset import Preset

_BERT = partial(
    ModelConfig,
    context_length=512,
    causal=False,
    head=None,
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


def presets() -> Iterator[Preset]:
    """The families' presets, in the order of their papers."""
    for name, vocab, width, layers, heads, figure in _BERT_SIZES:
        cfg = _BERT(vocab, width, layers, num_heads=heads)
        yield Preset(name, "BERT", cfg, "1810.04805", figure, "section 3")
    for name, vocab, width, layers, heads, figure in _ROBERTA_SIZES:
        # Its table of positions has two rows more, before the first token's: no token uses them.
        cfg = _BERT(vocab, width, layers, num_heads=heads, norm_eps=1e-5, token_types=1)
        yield Preset(name, "RoBERTa", cfg, "1907.11692", figure, "its README")
