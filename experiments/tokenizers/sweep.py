"""How many pieces should the tokenizer of a small model have?

Bytes, or BPE of 512, 2048, 8192 pieces. Each reads the same number of bytes in a step, in rows of
about 256 bytes. Losses are nats per token, not to be compared: `bits.py` makes bits per byte.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config

# Tokens in 256 bytes of the standard library's source, by the size of the vocabulary.
ROWS = {259: 256, 512: 128, 2048: 82, 8192: 67}


def get_config() -> ConfigDict:
    """`ablation` with 614 thousand bytes to read, scored on all held-out text."""
    config = read_config("ablation")
    config.model.context_length = 256
    config.train.steps = 300
    config.train.eval_every_steps = 300
    config.train.eval_batches = None
    return config


def sweep(add):
    for pieces, length in ROWS.items():
        for rate in (3e-3, 6e-3):
            point = {
                "tokenizer.kind": "bytes" if pieces == 259 else "sentencepiece",
                "model.vocab_size": pieces,
                "data.sequence_length": length,
                "optim.learning_rate": rate,
            }
            name = f"pieces={pieces},learning_rate={rate}"
            add(point, name=name, seeds=3, baseline=(pieces, rate) == (259, 3e-3))
