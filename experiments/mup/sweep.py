"""Does a learning rate found on a narrow model serve a wide one?

Widths 32, 64 and 128 at six learning rates, as they are and with maximal update parametrization.
"""

from llmasos_jax.sweep import grid

CONFIG = "ablation"
BASE = 32


def sweep(add):
    rates = [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
    for point in grid({"model.embedding_dim": [32, 64, 128], "optim.learning_rate": rates}):
        width, rate = point["model.embedding_dim"], point["optim.learning_rate"]
        # Heads of 16 throughout, so that width alone changes.
        shape = {
            "train.init_std": 0.1,  # what 0.02 is to a width of 768
            **point,
            "model.num_heads": width // 16,
            "model.head_dim": 16,
            "model.ffn_dim": 3 * width,
            "train.steps": 250,
        }
        add(shape, name=f"standard {width} {rate:g}", seeds=2)
        mup = {"optim.mup_base_dim": BASE, "model.logit_scale": BASE / width}
        add({**shape, **mup}, name=f"mup {width} {rate:g}", seeds=2)
