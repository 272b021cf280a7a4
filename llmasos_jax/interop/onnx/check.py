"""What of a model a graph of ONNX's own operators cannot say, asked before a byte is written."""

from __future__ import annotations

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError
from llmasos_jax.interop.onnx.parts import ACTIVATIONS, NORMS


def is_decoder(cfg: ModelConfig) -> bool:
    """Whether the graph has a cache: it writes, token by token. A classifier reads whole texts."""
    return cfg.causal and not cfg.classifier.labels


def check_onnx(cfg: ModelConfig) -> None:
    """Raises FormatError for the first option that has no place in the graph.

    Example:
      >>> check_onnx(ModelConfig(vocab_size=8, embedding_dim=8, num_layers=1, prefix_lm=True))
      Traceback (most recent call last):
      ...
      llmasos_jax.errors.FormatError: ONNX cannot hold prefix_lm=True: ...
    """
    for name, value, known in (
        ("attention", cfg.attention, ("dot_product",)),
        ("norm", cfg.norm, NORMS),
        ("mlp", cfg.mlp, ACTIVATIONS),
    ):
        if value not in known:
            raise FormatError(
                f'ONNX cannot hold {name}="{value}", which is code of your own; what it has: '
                + ", ".join(known)
            )
    if cfg.prefix_lm:
        raise FormatError(
            "ONNX cannot hold prefix_lm=True: programs that run decoders do not say where a prompt "
            "ends, so it could not be read in both directions"
        )
    if cfg.token_types and is_decoder(cfg):
        raise FormatError(
            f"ONNX cannot hold token_types={cfg.token_types} in a decoder: programs that run "
            "decoders have no input of that name"
        )
