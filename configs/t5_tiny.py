"""t5_tiny: a small encoder-decoder, trained on a laptop in minutes to fill the holes of a text.

Paper:    Raffel et al., 2019, arXiv 1910.10683, section 3.1.4 (span corruption: 15%, spans of 3
          tokens on average); the model is T5 version 1.1's, with its table also as output layer.
Purpose:  an encoder-decoder's training, evaluation and checkpoints, on real text.
Data:     the Python standard library's own source, on every machine; nothing is downloaded.
Command:  llmasos train --config=t5_tiny --workdir=runs/t5_tiny
Run time: 600 steps of 5,024 tokens, 128 in the encoder and 29 in the decoder of each row.
Expected: not run to its end yet.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.models import zoo


def get_config() -> ConfigDict:
    """2 + 2 layers of width 128 over 4096 pieces: 1.4 million weights."""
    config = default_config()
    config.name = "t5_tiny"

    config.model.update(zoo.values("t5-v1_1-small"))
    config.model.vocab_size = 4096
    config.model.tie_embeddings = True
    config.model.embedding_dim = 128
    config.model.num_layers = 2
    config.model.encoder.num_layers = 2
    config.model.num_heads = 2
    config.model.head_dim = 64
    config.model.ffn_dim = 320
    config.model.context_length = 128
    config.tokenizer.kind = "tokenizers"
    config.tokenizer.model_type = "unigram"

    config.data.sequence_length = 128
    config.data.heldout_fraction = 0.05
    config.objective.name = "span_corruption"
    config.train.batch_size = 32
    config.train.steps = 600
    config.train.log_every_steps = 50
    config.train.eval_every_steps = 200
    config.train.eval_batches = None
    config.train.init_std = 0.08
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 100
    config.checkpoint.every_steps = 300
    return config
