"""A training run that takes seconds, over a text that the test writes itself."""

import random

from llmasos_jax.config.build import from_dict
from llmasos_jax.train.hooks import Hook


def small_config(folder, steps=8, **groups):
    """A config over bytes; `groups` are changes by group: `train={"dropout_rate": 0.1}`."""
    text = folder / "text"
    if not text.exists():
        text.mkdir()
        rng = random.Random(0)
        for number in range(12):
            words = [rng.choice(["def", "return", "x", "+", "1", "\n"]) for _ in range(300)]
            (text / f"{number:02d}.txt").write_text(" ".join(words))
    defaults = {
        "model": {
            "vocab_size": 259,
            "embedding_dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "context_length": 32,
        },
        "data": {"source": "text", "path": str(text), "sequence_length": 32},
        "train": {
            "steps": steps,
            "batch_size": 8,
            "log_every_steps": 1,
            "eval_every_steps": None,
            "eval_batches": 2,
        },
        "optim": {"warmup_steps": 2, "learning_rate": 1e-2},
        "checkpoint": {"every_steps": None},
    }
    names = [*defaults, *(name for name in groups if name not in defaults)]
    merged = {name: {**defaults.get(name, {}), **groups.get(name, {})} for name in names}
    return from_dict({"name": "small", **merged})


class At(Hook):
    """Does something when the values of one step arrive."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, step, values):
        if step == self.step:
            self.action()


class Record(Hook):
    """Keeps what it is told, in order."""

    def __init__(self):
        self.events = []
        self.values = {}
        self.heldout = {}

    def on_start(self, run):
        self.events.append(("start", run.start_step))

    def on_step(self, step, values):
        self.events.append(("step", step))
        self.values[step] = values

    def on_eval(self, step, values):
        self.events.append(("eval", step))
        self.heldout[step] = values

    def on_sample(self, step, text):
        self.events.append(("sample", text))

    def on_checkpoint(self, step):
        self.events.append(("checkpoint", step))

    def on_end(self, step, error):
        self.events.append(("end", step if error is None else type(error).__name__))
