"""Several engines with the same weights, each on its own part of a mesh."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from llmasos_jax.engine.engine import Engine, EngineStats
from llmasos_jax.engine.options import EngineOptions
from llmasos_jax.engine.request import Ask, Piece, Ticket
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Weights


class Replicas:
    """Gives each text to the engine that has the fewest; otherwise one engine to its callers.

    Args:
      engines: at least one, with the same model and the same sizes.
    """

    def __init__(self, engines: list[Engine]) -> None:
        self.engines = engines
        self.model, self.sizes = engines[0].model, engines[0].sizes
        self._lock = threading.Lock()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def num_programs(self) -> int:
        """Programs that `warm_up` goes through."""
        return sum(engine.num_programs for engine in self.engines)

    @property
    def is_open(self) -> bool:
        """Whether all take texts."""
        return all(engine.is_open for engine in self.engines)

    def warm_up(self, on_program: Callable[[str], None] | None = None) -> None:
        """Compiles all programs, as `Engine.warm_up`."""
        for engine in self.engines:
            engine.warm_up(on_program)

    def submit(self, ask: Ask, on_piece: Callable[[Piece], None] | None = None) -> Ticket:
        """Takes a text into the queue of one of them, as `Engine.submit`."""
        with self._lock:
            return min(self.engines, key=_load).submit(ask, on_piece)

    def stats(self) -> EngineStats:
        """The sums over the engines."""
        each = [dataclasses.astuple(engine.stats()) for engine in self.engines]
        return EngineStats(*(sum(column) for column in zip(*each, strict=True)))

    def drain(self, timeout_s: float | None = None) -> bool:
        """Takes no more texts and waits for those there are; whether all ended in time."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        for engine in self.engines:
            engine.stop_taking()
        left = lambda: None if end is None else max(end - time.monotonic(), 0.0)
        return all([engine.drain(left()) for engine in self.engines])

    def close(self) -> None:
        """Ends all texts and threads."""
        for engine in self.engines:
            engine.close()


def start_engine(model: Model, options: EngineOptions = EngineOptions()) -> Engine | Replicas:
    """An engine for a model: several, where its mesh has an axis `data` of more than one.

    Args:
      model: a decoder with its tokenizer.
      options: sizes of each engine.

    Raises:
      GenerationError: the model cannot run on pages.
    """
    mesh = model.weights.placing.mesh
    if mesh is None or mesh.shape.get("data", 1) == 1:
        return Engine(model, options)
    axis = mesh.axis_names.index("data")
    parts = [
        Mesh(part, mesh.axis_names, axis_types=mesh.axis_types)
        for part in np.split(mesh.devices, mesh.devices.shape[axis], axis=axis)
    ]
    return Replicas([Engine(_part_of(model, part), options) for part in parts])


def _part_of(model: Model, mesh: Mesh) -> Model:
    """The model on a part of its devices, which hold all of its weights."""
    weights = model.weights
    placing = dataclasses.replace(weights.placing, mesh=mesh)
    params = jax.tree.map(
        lambda array: jax.device_put(array, NamedSharding(mesh, array.sharding.spec)),
        weights.params,
    )
    runtime = dataclasses.replace(weights.runtime, mesh=mesh)
    part = Weights(placing, params, runtime, weights.file_dtypes)
    return Model(model.manifest, part, model.tokenizer)


def _load(engine: Engine) -> int:
    stats = engine.stats()
    return stats.num_running + stats.num_waiting
