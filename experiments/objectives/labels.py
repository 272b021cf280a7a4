"""Which objective's trunk tells best from which package some lines of source are?

All weights of each run of `sweep.py`, in runs/objectives, go on with the texts of `data.py`, in
runs/packages.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import read_config

METRIC = "heldout_accuracy"
LABELS = ("asyncio", "email", "http", "importlib", "multiprocessing", "unittest", "xml")
# What each says of its model.
OBJECTIVES = {
    "causal": {},
    "mlm": {"model.causal": False},
    "prefix_lm": {"model.prefix_lm": True},
    "untrained": {},
    "untrained_both": {"model.causal": False},
}


def get_config() -> ConfigDict:
    """Three and a half times over 700 texts."""
    config = read_config("ablation")
    config.model.vocab_size = 1024
    config.finetune.method = "full"
    config.finetune.too_long = "truncate"
    config.model.classifier.labels = LABELS
    config.objective.name = "classify"
    config.data.source = "jsonl"
    config.data.path = "runs/packages/train.jsonl"
    config.data.heldout_path = "runs/packages/heldout.jsonl"
    config.data.sequence_length = 64
    config.train.steps = 150
    config.train.batch_size = 16
    config.train.eval_every_steps = 150
    config.train.eval_batches = None
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 15
    config.checkpoint.every_steps = None
    return config


def sweep(add):
    for name, model in OBJECTIVES.items():
        for seed in range(3):
            base = f"runs/objectives/points/{name},seed={seed}"
            add({"finetune.base": base, "train.seed": seed, **model}, name=f"{name},seed={seed}")
