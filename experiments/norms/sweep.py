"""Which norm, and where in a block?

RMSNorm and LayerNorm before each part; RMSNorm after the sum, around each part, and after it.
"""

from llmasos_jax.sweep import zipped

CONFIG = "ablation"


def sweep(add):
    norms = ["rmsnorm", "layernorm", "rmsnorm", "rmsnorm", "rmsnorm"]
    places = ["pre", "pre", "post", "sandwich", "output"]
    for rate in (2e-3, 6e-3):
        for point in zipped({"model.norm": norms, "model.norm_placement": places}):
            is_usual = rate == 2e-3 and [*point.values()] == ["rmsnorm", "pre"]
            add({**point, "optim.learning_rate": rate}, seeds=3, baseline=is_usual)
