"""bert_base_512: the second phase of BERT-base, on 512 tokens, for the positions from 128 on.

Paper:    Devlin et al., 2018, arXiv 1810.04805, appendix A.2: the last 100,000 of a million steps.
Data:     that of the first phase, and its tokenizer.
Command:  llmasos train --config=bert_base_512 --workdir=runs/bert_base_512
          after `configs/bert_base.py` in runs/bert_base, or in another --config.train.start_from.
Run time: 100,000 steps of 131,072 tokens, 7.7e18 operations; needs accelerators.
Expected: not run here. The learning rate goes on where the first phase ended, down to 0; the
          optimizer's averages start afresh.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config


def get_config() -> ConfigDict:
    """As `bert_base`, from its newest weights, with four times the length."""
    config = read_config("bert_base")
    config.name = "bert_base_512"

    config.data.sequence_length = 512
    config.train.start_from = "runs/bert_base"
    config.train.steps = 100_000
    config.optim.learning_rate *= config.optim.final_fraction
    config.optim.final_fraction = 0.0
    config.optim.warmup_steps = 0
    return config
