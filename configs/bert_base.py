"""bert_base: the published pre-training of BERT-base, its first phase on 128 tokens.

Paper:    Devlin et al., 2018, arXiv 1810.04805, appendix A.2: batch 256, Adam 1e-4 (0.9, 0.999),
          decay 0.01, 10,000 steps of warm-up, linear to 0, dropout 0.1; 128 tokens for 90% of one
          million steps, 512 for the rest (`configs/bert_base_512.py`).
Data:     your own documents, as Wikipedia's articles: one JSON object with a "text" each.
Command:  llmasos train --config=bert_base --workdir=runs/bert_base
          with --config.data.path='wiki/*.jsonl', which is also the default.
Run time: 900,000 steps of 32,768 tokens, 1.6e19 operations; needs accelerators.
Expected: not run here. Other than in the paper, the weights of attention have no dropout of their
          own. The learning rate falls on the line that ends at step one million.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.models import zoo


def get_config() -> ConfigDict:
    """12 layers of width 768 over a WordPiece vocabulary of 30,522: 110 million weights."""
    config = default_config()
    config.name = "bert_base"

    config.model.update(zoo.values("bert-base-uncased"))
    # Trained on the data; tokenizer.path takes a vocab.txt.
    config.tokenizer.kind = "tokenizers"
    config.tokenizer.model_type = "wordpiece"
    config.tokenizer.train_chars = 1_000_000_000

    config.data.source = "jsonl"
    config.data.path = "wiki/*.jsonl"
    config.data.sequence_length = 128
    config.data.heldout_fraction = 0.001
    config.objective.name = "mlm_nsp"
    config.train.batch_size = 256
    config.train.steps = 900_000
    config.precision.dtype = "bfloat16"
    config.train.dropout_rate = 0.1
    config.train.log_every_steps = 100
    config.train.eval_every_steps = 10_000
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 10_000
    config.optim.final_fraction = 100_000 / 990_000
    config.optim.weight_decay = 0.01
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-6
    config.checkpoint.every_steps = 10_000
    return config
