"""Which learning rate goes with which width? One seed each, without the width that is predicted."""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config


def get_config() -> ConfigDict:
    """`ablation` with twice the text: 820 thousand bytes."""
    config = read_config("ablation")
    config.train.batch_size = 16
    config.train.seed = 100
    return config


def sweep(add):
    for width in (16, 32, 64):
        for share in (0.2, 0.4, 0.8):
            add(
                {
                    "model.embedding_dim": width,
                    "model.ffn_dim": 3 * width,
                    "optim.learning_rate": share / width,
                }
            )
