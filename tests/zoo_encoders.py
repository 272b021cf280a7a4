"""The published `config.json` values of encoders and encoder-decoders, as in `zoo_configs`."""

from typing import Any

Published = tuple[str, dict[str, Any]]


def _bert(width: int, layers: int, heads: int, vocab: int, name: str = "Bert") -> Published:
    is_roberta = name == "Roberta"
    return f"{name}Config", dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocab,
        max_position_embeddings=514 if is_roberta else 512,
        type_vocab_size=1 if is_roberta else 2,
        layer_norm_eps=1e-5 if is_roberta else 1e-12,
        hidden_act="gelu",
        pad_token_id=1 if is_roberta else 0,
    )


def _modernbert(width: int, layers: int, heads: int, ffn: int) -> Published:
    return "ModernBertConfig", dict(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=50368,
        max_position_embeddings=8192,
        global_attn_every_n_layers=3,
        local_attention=128,
        global_rope_theta=160000.0,
        local_rope_theta=10000.0,
        norm_eps=1e-5,
        norm_bias=False,
        hidden_activation="gelu",
        attention_bias=False,
        mlp_bias=False,
        classifier_pooling="mean" if width == 768 else "cls",
    )


def _t5(width: int, ffn: int, layers: int, heads: int, kv: int = 64) -> Published:
    return "T5Config", dict(
        **dict(d_model=width, d_ff=ffn, num_layers=layers, num_heads=heads, d_kv=kv),
        **dict(vocab_size=32128, n_positions=512, layer_norm_epsilon=1e-6, dropout_rate=0.1),
        **dict(relative_attention_num_buckets=32, decoder_start_token_id=0, output_past=True),
    )


def _t5_gated(*sizes: int, vocab: int = 32128) -> Published:
    # Version 1.1 and mT5 name no n_positions; Flan-T5, of the same shape, says 512.
    width, ffn, layers, heads = sizes
    return "T5Config" if vocab == 32128 else "MT5Config", dict(
        **dict(d_model=width, d_ff=ffn, num_layers=layers, num_heads=heads, d_kv=64),
        **dict(num_decoder_layers=layers, vocab_size=vocab, layer_norm_epsilon=1e-6),
        **dict(relative_attention_num_buckets=32, decoder_start_token_id=0),
        **dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    )


_T5_GATED = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}

ENCODERS: dict[str, Published] = {
    "bert-base-uncased": _bert(768, 12, 12, 30522),
    "bert-large-uncased": _bert(1024, 24, 16, 30522),
    "bert-base-cased": _bert(768, 12, 12, 28996),
    "bert-large-cased": _bert(1024, 24, 16, 28996),
    "roberta-base": _bert(768, 12, 12, 50265, "Roberta"),
    "roberta-large": _bert(1024, 24, 16, 50265, "Roberta"),
    "modernbert-base": _modernbert(768, 22, 12, 1152),
    "modernbert-large": _modernbert(1024, 28, 16, 2624),
    "t5-small": _t5(512, 2048, 6, 8),
    "t5-base": _t5(768, 3072, 12, 12),
    "t5-large": _t5(1024, 4096, 24, 16),
    "t5-3b": _t5(1024, 16384, 24, 32, kv=128),
    "t5-11b": _t5(1024, 65536, 24, 128, kv=128),
    **{f"t5-v1_1-{size}": _t5_gated(*sizes) for size, sizes in _T5_GATED.items()},
    **{f"flan-t5-{size}": _t5_gated(*sizes) for size, sizes in _T5_GATED.items()},
    **{f"mt5-{size}": _t5_gated(*sizes, vocab=250112) for size, sizes in _T5_GATED.items()},
}
