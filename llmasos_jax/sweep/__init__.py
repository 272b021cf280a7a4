"""Ablation sweeps: many runs over one config, those that share shapes in one program.

A sweep is a Python file::

    from llmasos_jax.sweep import grid

    CONFIG = "tiny"

    def sweep(add):
        for point in grid({"optim.learning_rate": [1e-3, 3e-3, 1e-2]}):
            add(point, seeds=4)

`llmasos sweep FILE --workdir=DIR` runs it, `llmasos_jax.sweep(FILE, DIR)` does from a notebook.
"""

from llmasos_jax.callable import make_callable
from llmasos_jax.sweep.space import drawn, grid, log_uniform, uniform, zipped

make_callable(__name__, "llmasos_jax.api:sweep")  # llmasos_jax.sweep(path, workdir)

__all__ = ["drawn", "grid", "log_uniform", "uniform", "zipped"]
