"""base: what every other config here starts from. A delta names only what differs.

A GPT-sized decoder on the Python standard library's own source, cut by a sentencepiece model that
is trained on it: no download on any machine. Nothing here is tuned for one machine; batch, steps
and mesh belong to the deltas.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config() -> ConfigDict:
    """A 12-layer, 768-wide decoder with rotary positions, RMSNorm and SwiGLU."""
    config = default_config()
    config.name = "base"

    config.tokenizer.kind = "sentencepiece"
    config.model.vocab_size = 8192
    config.model.embedding_dim = 768
    config.model.num_layers = 12
    config.model.context_length = 1024
    config.data.sequence_length = 1024
    return config
