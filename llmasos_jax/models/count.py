"""Parameters and floating-point operations of a model, in closed form."""

from __future__ import annotations

from llmasos_jax.config.model import ModelConfig


def count_parameters(cfg: ModelConfig) -> int:
    """Numbers that the model learns; a tied table counts once.

    Example:
      >>> count_parameters(ModelConfig(vocab_size=10, embedding_dim=4, num_layers=1, ffn_dim=8))
      212
    """
    d, v = cfg.embedding_dim, cfg.vocab_size
    embed = v * d + (cfg.context_length * d if cfg.position == "learned" else 0)
    embed += _norm(cfg, d) if cfg.embedding_norm else 0
    head = 0 if cfg.tie_embeddings else v * d
    final = _norm(cfg, d) if cfg.final_norm else 0
    return embed + cfg.num_layers * _block(cfg) + final + head


def count_matmul_parameters(cfg: ModelConfig) -> int:
    """Weights that each token is multiplied by: those of the blocks and of the output layer."""
    d, n, k, h = cfg.embedding_dim, cfg.query_heads, cfg.kv_heads, cfg.head_width
    attention = d * n * h * 2 + d * k * h * 2
    mlp = d * cfg.ffn_width * (3 if cfg.is_gated else 2)
    return cfg.num_layers * (attention + mlp) + cfg.vocab_size * d


def flops_per_token(cfg: ModelConfig, sequence_length: int) -> float:
    """Operations of one training step per token, forward and backward, nothing computed twice.

    6 for each weight of a product (2 forward, 4 backward), the output layer included and the
    embedding look-up not, and 12 N H for each key that a query sees (scores and mixture, 2 products
    each way; Chowdhery et al., 2022, arXiv 2204.02311, appendix B, with the keys that are masked
    left out).

    Args:
      cfg: the model.
      sequence_length: tokens in a row; one document a row is assumed.
    """
    width = cfg.query_heads * cfg.head_width
    keys = sum(_mean_keys(cfg, layer, sequence_length) for layer in range(cfg.num_layers))
    return 6.0 * count_matmul_parameters(cfg) + 12.0 * width * keys


def parameter_bytes(cfg: ModelConfig, itemsize: int = 4) -> int:
    """Bytes of the weights at `itemsize` bytes each."""
    return count_parameters(cfg) * itemsize


def _mean_keys(cfg: ModelConfig, layer: int, length: int) -> float:
    """Keys that a query sees on average."""
    window = min(cfg.layer_window(layer) or length, length)
    one_side = window * (window + 1) / 2 + (length - window) * window
    both_sides = 2 * one_side - length
    return (one_side if cfg.causal else both_sides) / length


def _norm(cfg: ModelConfig, width: int) -> int:
    return width * (2 if cfg.norm != "rmsnorm" and cfg.norm_bias else 1)


def _block(cfg: ModelConfig) -> int:
    d, n, k, h, f = (
        cfg.embedding_dim,
        cfg.query_heads,
        cfg.kv_heads,
        cfg.head_width,
        cfg.ffn_width,
    )
    attention = 2 * d * n * h + 2 * d * k * h
    attention += (n + 2 * k) * h if cfg.qkv_bias else 0
    attention += d if cfg.attention_out_bias else 0
    attention += {None: 0, "head": 2 * h, "full": (n + k) * h}[cfg.qk_norm]
    num_in = 2 if cfg.is_gated else 1
    mlp = (num_in + 1) * d * f + (num_in * f + d if cfg.mlp_bias else 0)
    norms = {"pre": 2, "post": 2, "output": 2, "sandwich": 4}[cfg.norm_placement]
    norms -= 1 if cfg.block == "parallel" else 0
    return attention + mlp + norms * _norm(cfg, d)
