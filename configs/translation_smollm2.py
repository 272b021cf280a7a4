"""translation_smollm2: English to Spanish, learned from verses; to Chinese, from a handbook.

Paper:    Hu et al., 2021, arXiv 2106.09685 (low-rank changes of all products).
Data:     en_es: World English Bible and Reina-Valera 1909 verse by verse, 29,897 pairs to learn
          from and 141 held out (Ruth, Jonah, Philemon); en_zh: short paragraphs of The Debian
          Administrator's Handbook, 647 and 101 (two chapters): experiments/translation/README.md.
Command:  llmasos finetune --config=translation_smollm2:en_es --workdir=runs/en_es
          and the same with en_zh; the variant is the pair of languages.
Run time: 3 minutes on 2 CPU cores for each pair (2 min 36 s and 3 min 3 s seen).
Expected: en_es: loss from 4.03 to 2.8; chrF 14.6 to 15.5, BLEU 1.0 to 1.7 on the held-out
          verses: their style, no translation of them. en_zh: chrF 3.9 to 15.5, BLEU 1.8 to 9.7.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config(variant: str = "en_es") -> ConfigDict:
    """A text as the user's message, its translation as the answer, which alone is scored."""
    config = default_config()
    config.name = "translation_smollm2"

    config.finetune.base = "smollm2-135m-instruct"
    config.finetune.method = "lora"
    config.finetune.rank = 16
    config.finetune.alpha = 32.0
    config.finetune.too_long = "drop"
    config.objective.name = "sft"

    config.data.source = "jsonl"
    config.data.path = f"data/translation/{variant}/train.jsonl"
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
