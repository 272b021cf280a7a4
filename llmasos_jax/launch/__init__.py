"""Files that start a config on a cluster: Kubernetes, XPK, Slurm, TPU VMs."""

from llmasos_jax.callable import make_callable

make_callable(__name__, "llmasos_jax.api:launch")  # llmasos_jax.launch(config, "slurm", ...)
