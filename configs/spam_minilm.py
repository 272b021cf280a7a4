"""spam_minilm: spam and ham told apart, by all weights of all-MiniLM-L6-v2.

Paper:    Reimers and Gurevych, 2019, arXiv 1908.10084 (the base); Devlin et al., 2018, arXiv
          1810.04805, section 4.1 (a classifier on the pooled state).
Data:     the Spam Assassin corpus, 6,046 emails, in spam.jsonl: experiments/spam/README.md.
Command:  llmasos finetune --config=spam_minilm --workdir=runs/spam
          with --config.data.path=FILE where spam.jsonl is elsewhere.
Run time: 5 minutes on 2 CPU cores (4 min 50 s seen).
Expected: 97.6% of 911 held-out texts right, macro F1 97.1%.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config() -> ConfigDict:
    """22 million weights, and a classifier of two labels on the pooler's state."""
    config = default_config()
    config.name = "spam_minilm"

    config.finetune.base = "all-minilm-l6-v2"
    config.finetune.method = "full"
    config.finetune.too_long = "truncate"
    config.model.classifier.labels = ("ham", "spam")

    config.data.source = "jsonl"
    config.data.path = "spam.jsonl"
    config.data.sequence_length = 128
    config.data.heldout_fraction = 0.15
    config.objective.name = "classify"

    config.train.steps = 200
    config.train.batch_size = 16
    config.train.dropout_rate = 0.1
    config.train.eval_every_steps = 200
    config.train.eval_batches = None
    config.optim.learning_rate = 1e-4
    config.optim.warmup_steps = 20
    config.optim.schedule = "linear"
    config.optim.final_fraction = 0.0
    config.optim.weight_decay = 0.01
    config.optim.beta2 = 0.999
    config.checkpoint.every_steps = None
    return config
