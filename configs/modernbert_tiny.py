"""modernbert_tiny: `bert_tiny` as one would build it today: rotary, pre-norm, windows, no padding.

Paper:    Warner et al., 2024, arXiv 2412.13663 (the model; masked tokens at 30%, no next sentence).
Purpose:  the modern encoder beside the first one, on the same text; several documents share a row.
Data:     the Python standard library's own source, on every machine; nothing is downloaded.
Command:  llmasos train --config=modernbert_tiny --workdir=runs/modernbert_tiny
Run time: 2,800 steps of 2,048 tokens, as `bert_tiny`.
Expected: not run to its end yet.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config
from llmasos_jax.models import zoo


def get_config() -> ConfigDict:
    """3 layers of width 128 over 4096 pieces; one in three sees the whole row."""
    config = read_config("bert_tiny")
    config.name = "modernbert_tiny"

    config.model.update(zoo.values("modernbert-base"))
    config.model.vocab_size = 4096
    config.model.embedding_dim = 128
    config.model.num_layers = 3
    config.model.num_heads = 2
    config.model.ffn_dim = 192
    config.model.context_length = 128
    config.model.attention_windows = (None, 33, 33)

    config.data.sequence_length = 128
    config.train.batch_size = 16
    config.objective.name = "mlm"
    config.objective.mask_rate = 0.3
    return config
