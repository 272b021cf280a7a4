"""translation_en_es: English to Spanish, learned from verses.

Paper:    Hu et al., 2021, arXiv 2106.09685 (low-rank changes of all products).
Data:     World English Bible and Reina-Valera 1909 verse by verse, 29,897 pairs to learn from and
          141 held out (Ruth, Jonah, Philemon): experiments/translation/README.md.
Command:  llmasos finetune --config=translation_en_es --workdir=runs/en_es
          with --config.data.path=FILE where train.jsonl is not in data/translation/en_es.
Run time: 32 steps of 4 x 512 tokens; minutes not measured yet.
Expected: loss from 4.03 to 2.8; chrF 15.5, BLEU 1.7 on the held-out verses: their style, no
          translation of them.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config() -> ConfigDict:
    """A verse as the user's message, its translation as the answer; the answer alone is scored."""
    config = default_config()
    config.name = "translation_en_es"

    config.finetune.base = "smollm2-135m-instruct"
    config.finetune.method = "lora"
    config.finetune.rank = 16
    config.finetune.alpha = 32.0
    config.finetune.too_long = "drop"
    config.objective.name = "sft"

    config.data.source = "jsonl"
    config.data.path = "data/translation/en_es/train.jsonl"
    config.data.sequence_length = 512
    config.data.heldout_fraction = 0.0

    config.train.steps = 32
    config.train.batch_size = 4
    config.train.eval_every_steps = None
    config.train.log_every_steps = 4
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 4
    config.optim.weight_decay = 0.0
    config.precision.dtype = "bfloat16"
    config.checkpoint.every_steps = None
    return config
