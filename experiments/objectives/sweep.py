"""Masked tokens, every next token, or what follows a prefix: from which does a trunk learn more?

One trunk, one tokenizer, the same text. Their held-out losses are of different targets and may not
be ranked; `labels.py` goes on from each run with one task for all.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config

OBJECTIVES = {
    "causal": {"objective.name": "causal"},
    "mlm": {"objective.name": "mlm", "model.causal": False},
    "prefix_lm": {"objective.name": "prefix_lm", "model.prefix_lm": True},
    # One step of warm-up, which hardly moves a weight: what the task alone teaches.
    "untrained": {"objective.name": "causal", "train.steps": 1},
    "untrained_both": {"objective.name": "mlm", "model.causal": False, "train.steps": 1},
}


def get_config() -> ConfigDict:
    """`ablation` over 1,024 pieces with a mask among them: 410 thousand tokens read."""
    config = read_config("ablation")
    config.tokenizer.kind = "tokenizers"
    config.tokenizer.model_type = "wordpiece"
    config.model.vocab_size = 1024
    config.data.sequence_length = 64
    config.train.batch_size = 16
    return config


def sweep(add):
    for name, point in OBJECTIVES.items():
        add(point, name=name, seeds=3)
