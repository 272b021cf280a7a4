"""What a run would do on a pod, from the TPU compiler, before it is paid for."""

from llmasos_jax.callable import make_callable

make_callable(__name__, "llmasos_jax.api:plan")  # llmasos_jax.plan(config, topology)
