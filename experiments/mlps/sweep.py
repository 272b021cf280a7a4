"""Which MLP, with the same number of weights?

Gated ones have three products of width F, plain ones two of width 3/2 F.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config


def get_config() -> ConfigDict:
    """`ablation` in 300 steps."""
    config = read_config("ablation")
    config.train.steps = 300
    return config


def sweep(add):
    widths = {"swiglu": 192, "geglu": 192, "reglu": 192, "gelu": 288, "relu": 288}
    for kind, width in widths.items():
        for rate in (3e-3, 6e-3):
            point = {"model.mlp": kind, "model.ffn_dim": width, "optim.learning_rate": rate}
            add(point, seeds=3, baseline=(kind, rate) == ("gelu", 3e-3))
