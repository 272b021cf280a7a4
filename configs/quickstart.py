"""quickstart: a small language model of Python, trained on a laptop in minutes.

Purpose:  the whole path once, on real text: train, evaluate, checkpoint, convert, generate.
Data:     the Python standard library's own source, on every machine; nothing is downloaded.
Command:  make quickstart
          or: llmasos train --config=quickstart --workdir=runs/quickstart
Run time: under 4 minutes on 2 CPU cores (212 s of training seen, 819,200 tokens).
Expected: held-out perplexity per token of about 68, where counting reaches 103 (bigram, add-one)
          and 571 (unigram); a continuation of "def __init__(self" that looks like Python.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config


def get_config() -> ConfigDict:
    """4 layers of width 192 and 2048 pieces: 2.2 million weights."""
    config = read_config("base")
    config.name = "quickstart"

    config.model.vocab_size = 2048
    config.model.embedding_dim = 192
    config.model.num_layers = 4
    config.model.num_heads = 3
    config.model.context_length = 256

    config.data.sequence_length = 256
    config.train.batch_size = 8
    config.train.steps = 400
    config.train.eval_every_steps = 100
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 50
    config.checkpoint.every_steps = 200
    config.sample.prompt = "def __init__(self"
    return config
