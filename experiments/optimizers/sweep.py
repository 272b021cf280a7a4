"""Which optimizer, each at the best of three learning rates, and which schedule for AdamW?"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config

RATES = {
    "adamw": [3e-3, 6e-3, 1.2e-2],
    "lion": [3e-4, 1e-3, 3e-3],
    "muon": [3e-3, 1e-2, 3e-2],
    "adafactor": [3e-3, 1e-2, 3e-2],
    "sgd": [1e-1, 3e-1, 1.0],
}


def get_config() -> ConfigDict:
    """`ablation` in 200 steps."""
    config = read_config("ablation")
    config.train.steps = 200
    config.optim.warmup_steps = 20
    return config


def sweep(add):
    for name, rates in RATES.items():
        for rate in rates:
            point = {"optim.name": name, "optim.learning_rate": rate}
            add(point, seeds=3, baseline=(name, rate) == ("adamw", 6e-3))
    for schedule in ("wsd", "constant"):
        add({"optim.schedule": schedule, "optim.learning_rate": 6e-3}, seeds=3)
