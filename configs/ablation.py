"""ablation: a small decoder over bytes, of which a dozen runs take two minutes.

Purpose:  what `experiments/*/sweep.py` change; questions whose answer shows early and small.
Data:     the Python standard library's own source, on every machine; nothing is downloaded.
Command:  llmasos sweep experiments/positions/sweep.py --workdir=runs/positions
Run time: in a sweep of eight to a program ten seconds for each run, on 2 CPU cores.
Expected: held-out loss of 2.3 nats per byte, where counting pairs of bytes reaches 2.7.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config() -> ConfigDict:
    """3 layers of width 64 over bytes: 170 thousand weights, 410 thousand bytes read."""
    config = default_config()
    config.name = "ablation"

    config.tokenizer.kind = "bytes"
    config.model.vocab_size = 259
    config.model.embedding_dim = 64
    config.model.num_layers = 3
    config.model.num_heads = 2
    config.model.context_length = 128

    config.data.sequence_length = 128
    config.train.batch_size = 8
    config.train.steps = 400
    config.train.log_every_steps = 10
    config.train.eval_every_steps = 100
    config.train.eval_batches = 16
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 40
    config.checkpoint.every_steps = 200
    return config
