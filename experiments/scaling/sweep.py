"""How does held-out loss fall with the number of weights, the text being the same?

Widths 16 to 64 are fitted (`fit.py`), 96 is predicted by the fit.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config


def get_config() -> ConfigDict:
    """`ablation` with twice the text: 820 thousand bytes."""
    config = read_config("ablation")
    config.train.batch_size = 16
    return config


def sweep(add):
    for width in (16, 24, 32, 48, 64, 96):
        add(
            {
                "model.embedding_dim": width,
                "model.ffn_dim": 3 * width,
                "optim.learning_rate": 0.4 / width,
            },
            name=f"width={width}",
            seeds=4,
        )
