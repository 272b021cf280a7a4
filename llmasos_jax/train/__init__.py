"""Training: objective, optimizer, step, loop, hooks; `run.run` puts them together."""

from llmasos_jax.callable import make_callable

make_callable(__name__, "llmasos_jax.api:train")  # llmasos_jax.train(config, workdir)
