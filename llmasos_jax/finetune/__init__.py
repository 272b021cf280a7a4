"""Fine-tuning: a run on the weights of a model that is there."""

from llmasos_jax.callable import make_callable

make_callable(__name__, "llmasos_jax.api:finetune")  # llmasos_jax.finetune(config, workdir)
