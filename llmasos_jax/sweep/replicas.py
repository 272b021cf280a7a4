"""Several runs as one program: states stacked, replicas over devices, each step one call.

The mesh of one replica is its run's own. In front stands an axis `replica`, over which the program
is manual: each group of devices trains its replicas and says nothing to the others. On a CPU the
replicas of a device go one after the other inside of the program, since XLA for CPU makes slow
loops of products with a further dimension; on accelerators `vmap` takes all at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.parallel.mesh import make_mesh, platform
from llmasos_jax.train.scaling import SMALLEST, choose
from llmasos_jax.train.state import TrainState
from llmasos_jax.train.step import Trainer

AXIS = "replica"
_REPLICA = PartitionSpec(AXIS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Replicas:
    """The states of runs that train together; the first axis of every array counts them.

    Attributes:
      state: of each run.
      broken: int32 [R], the step at which a run's loss or gradient was not finite any more, after
        which its state stays as it was before that step; 0 for one that goes on.
    """

    state: TrainState
    broken: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Each:
    """What each run of the program reads, [R].

    Attributes:
      key: typed PRNG keys, of the runs' seeds.
      batch: int32, which of the given batches is this run's.
      numbers: float32, by paths of `train.numbers.NUMBERS`.
    """

    key: jax.Array
    batch: jax.Array
    numbers: Mapping[str, jax.Array]


def lay_out(cfg: Config, num_runs: int, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
    """The mesh of one replica, and that of all, with `replica` in front.

    A replica has the devices that the config's mesh asks for; with a preset, which takes all there
    are, the replicas share them. What is left goes to `data`, where that divides the batch.

    Args:
      cfg: of any of the runs.
      num_runs: that train together.
      devices: of JAX; None takes all that it sees.

    Raises:
      ConfigError: the mesh does not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    copies, mesh = 1, cfg.mesh
    if mesh.preset is None:
        split = math.prod((*mesh.fsdp, mesh.expert, mesh.pipeline)) * (mesh.data or 1)
        size = split * mesh.tensor * mesh.context
        copies = max(1, min(num_runs, len(devices) // size))
        left = len(devices) // (size * copies) if mesh.data is None else 1
        parts = split * cfg.train.accumulate_steps
        wider = [n for n in range(1, left + 1) if cfg.train.batch_size % (parts * n) == 0]
        # Too few devices, or a batch that cannot be cut, are refused where the mesh is made.
        devices = devices[: size * copies * max(wider, default=1)]
    size = len(devices) // copies
    parts = [make_mesh(mesh, devices[i * size : (i + 1) * size]) for i in range(copies)]
    names = (AXIS, *parts[0].axis_names)
    laid = np.stack([part.devices for part in parts])
    return parts[0], Mesh(laid, names, axis_types=(AxisType.Auto,) * len(names))


@dataclass(frozen=True)
class Together:
    """The pure functions of runs that train together, jitted.

    Attributes:
      trainer: of any of the runs, on the mesh of one replica.
      mesh: of all, from `lay_out`.
      each: what the runs differ in; as many as `replica` divides (`padded`).
    """

    trainer: Trainer
    mesh: Mesh
    each: Each

    def init(self, init_stds: Sequence[float]) -> Replicas:
        """Each run as it would start alone, by the very program: another one rounds otherwise.

        Args:
          init_stds: of the runs, which are constants there.
        """
        program = functools.cache(self._initial)
        keys = jnp.split(self.each.key, len(init_stds))
        states = [
            jax.device_get(_with_key_data(program(std)(key[0])))
            for std, key in zip(init_stds, keys, strict=True)
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        wrapped = dataclasses.replace(stacked, key=jax.random.wrap_key_data(stacked.key))
        return jax.device_put(Replicas(wrapped, jnp.zeros(len(states), jnp.int32)), self.shardings)

    def _initial(self, init_std: float) -> Any:
        trainer = self.trainer.with_numbers({"train.init_std": init_std})
        return jax.jit(trainer.initial_state, out_shardings=trainer.state_shardings)

    @functools.cached_property
    def step(self) -> Any:
        """`(Replicas, batches) -> (Replicas, StepMetrics [R])`; takes the states' memory.

        `batches` are those of all data seeds, [S, ...].
        """

        def one(of_run: tuple[Replicas, Each], batches: Batch) -> Any:
            replica, each = of_run
            batch = jax.tree.map(lambda x: x[each.batch], batches)
            trainer = self.trainer.with_numbers(each.numbers)
            new, metrics = trainer.next_state(replica.state, batch)
            is_bad = ~(jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm))
            if new.scale is not None:
                # float16: an overflow is left out by the step itself, while the scale can fall.
                is_bad &= (metrics.extra["overflow"] == 0) | (new.scale.value < SMALLEST)
            is_broken = (replica.broken > 0) | is_bad
            before = dataclasses.replace(replica.state, key=new.key)
            chosen = dataclasses.replace(
                choose(is_broken, *(_without_key(state) for state in (before, new))), key=new.key
            )
            broken = jnp.where(is_bad & (replica.broken == 0), new.step, replica.broken)
            return Replicas(chosen, broken), metrics

        def step(replicas: Replicas, batches: Batch) -> Any:
            return self._over_replicas(one)((replicas, self.each), batches)

        where = NamedSharding(self.mesh, _REPLICA)
        return jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, where))

    @functools.cached_property
    def evaluate(self) -> Any:
        """`(Replicas, batches) -> LossSum [R]` of one held-out batch of each data seed."""

        def one(of_run: tuple[Replicas, Each], batches: Batch) -> Any:
            replica, each = of_run
            batch = jax.tree.map(lambda x: x[each.batch], batches)
            return self.trainer.held_out_sums(replica.state.params, batch)

        def evaluate(replicas: Replicas, batches: Batch) -> Any:
            return self._over_replicas(one)((replicas, self.each), batches)

        return jax.jit(evaluate, out_shardings=NamedSharding(self.mesh, _REPLICA))

    def put(self, batches: Sequence[Batch]) -> Batch:
        """The batches of all data seeds, stacked, where `step` reads them."""
        specs = self.trainer.batch_specs(batches[0])

        def place(spec: PartitionSpec, *rows: np.ndarray) -> jax.Array:
            return jax.device_put(
                np.stack(rows), NamedSharding(self.mesh, PartitionSpec(None, *spec))
            )

        return jax.tree.map(place, specs, *batches, is_leaf=lambda x: isinstance(x, PartitionSpec))

    @functools.cached_property
    def shardings(self) -> Replicas:
        """Where the states live."""
        state = jax.tree.map(
            lambda where: NamedSharding(self.mesh, PartitionSpec(AXIS, *where.spec)),
            self.trainer.state_shardings,
        )
        # A tree of shardings in the place of a tree of arrays.
        return Replicas(state, NamedSharding(self.mesh, _REPLICA))  # pyright: ignore[reportArgumentType]

    @functools.cached_property
    def abstract(self) -> Replicas:
        """The states' shapes, dtypes and shardings."""
        count = len(self.each.batch)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        shapes = Replicas(self.trainer.abstract_state, scalar)  # pyright: ignore[reportArgumentType]
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(
                (count, *leaf.shape), leaf.dtype, sharding=where
            ),
            shapes,
            self.shardings,
        )

    def _over_replicas(self, one: Any) -> Any:
        """`one(item, shared)` for each replica, on its devices."""
        at_once = None if platform(self.mesh) == "cpu" else len(self.each.batch)

        def here(items: Any, shared: Any) -> Any:
            return lax.map(lambda item: one(item, shared), items, batch_size=at_once)

        return jax.shard_map(
            here,
            mesh=self.mesh,
            in_specs=(_REPLICA, PartitionSpec()),
            out_specs=_REPLICA,
            axis_names={AXIS},
            check_vma=False,
        )


def padded(num_runs: int, mesh: Mesh) -> int:
    """As many runs as `replica` divides; those after the last are computed for nothing."""
    copies = mesh.shape[AXIS]
    return -(-num_runs // copies) * copies


def _with_key_data(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def _without_key(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=None)  # pyright: ignore[reportArgumentType]
