"""Reads a checkpoint's leaves one at a time, one layer at a time, through tensorstore.

Orbax restores whole trees. Conversion must not: its memory is one layer's tensor, whatever the
model's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorstore as ts

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.leaves import Leaf
from llmasos_jax.errors import CheckpointError, did_you_mean

# Where a run with bfloat16 weights keeps its float32 copies.
MASTERS = "opt_state/master"


class StoredState:
    """The leaves of one step folder, read when asked for.

    Attributes:
      folder: the step folder.
      step: its number.
      leaves: what each leaf is, by name ("params/embed/table").

    Raises:
      CheckpointError: no checkpoint there, or a damaged one.
    """

    def __init__(self, source: str | Path, step: int | None = None) -> None:
        self.folder = steps.find_step(source, step)
        self.step = int(self.folder.name)
        self.leaves: Mapping[str, Leaf] = MappingProxyType(read_leaves(self.folder))
        # No cache: each layer is read once, and a cache would be memory beyond the one layer.
        # One thread each, as every thread's heap would keep a layer that it has freed.
        self._context = ts.Context(
            {
                "cache_pool": {"total_bytes_limit": 0},
                "data_copy_concurrency": {"limit": 1},
                "file_io_concurrency": {"limit": 1},
            }
        )
        self._open: dict[str, Any] = {}

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """Reads one leaf, or one layer of a stacked leaf.

        Args:
          name: a key of `leaves`; typed PRNG keys come as their uint32 data.
          layer: index on the first axis of a stacked leaf; None reads all of it.

        Raises:
          CheckpointError: no such leaf, or it cannot be read.
        """
        if name not in self.leaves:
            hint = did_you_mean(name, self.leaves)
            raise CheckpointError(f'checkpoint "{self.folder}" has no leaf "{name}"{hint}')
        if 0 in self.leaves[name].shape:
            return np.zeros(self.leaves[name].shape, _numpy_dtype(self.leaves[name].dtype))
        store = self._store(name)
        try:
            return np.asarray((store if layer is None else store[layer]).read().result())
        except (ValueError, OSError, IndexError) as error:
            raise steps.damaged(self.folder, error) from error

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """The shape in which the leaf lies on disk; a stacked leaf's first axis is 1."""
        return tuple(self._store(name).chunk_layout.read_chunk.shape)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run had, as JSON."""
        return steps.read_json(self.folder, steps.CONFIG)

    def _store(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = self._open_store(name)
        return self._open[name]

    def _open_store(self, name: str) -> Any:
        spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{self.folder / steps.STATE}/"},
                "path": name.replace("/", ".") + "/",
            },
        }
        try:
            store = ts.open(spec, open=True, read=True, context=self._context).result()
        except (ValueError, OSError) as error:
            raise steps.damaged(self.folder, error) from error
        leaf = self.leaves[name]
        # Checked before a byte of the array is read: the sizes come from two files that must agree.
        if not leaf.dtype.startswith("key<") and tuple(store.shape) != leaf.shape:
            raise steps.damaged(
                self.folder,
                ValueError(f"{name} is {tuple(store.shape)} on disk and {leaf.shape} in its list"),
            )
        return store


def read_leaves(step_folder: Path) -> dict[str, Leaf]:
    """The list of leaves that `Checkpointer.save` put beside the arrays."""
    listed = steps.read_json(step_folder, steps.LEAVES)
    try:
        return {
            name: Leaf(tuple(int(n) for n in shape), str(dtype))
            for name, (shape, dtype) in listed.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise steps.damaged(step_folder, error) from error


def _numpy_dtype(name: str) -> np.dtype:
    import ml_dtypes  # noqa: F401  (registers bfloat16 by name)

    return np.dtype(name)
