"""How should a small decoder know where a byte stands?

Rotary, learned, ALiBi, T5's relative biases, and none at all; each at two learning rates.
"""

from llmasos_jax.sweep import grid

CONFIG = "ablation"


def sweep(add):
    kinds = ["rope", "learned", "alibi", "relative", "none"]
    for point in grid({"model.position": kinds, "optim.learning_rate": [3e-3, 1e-2]}):
        is_usual = point == {"model.position": "rope", "optim.learning_rate": 3e-3}
        add(point, seeds=4, baseline=is_usual)
