"""Hashes of what a run reads and of what it holds, the same however it lies on devices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.checkpoint.leaves import flatten
from llmasos_jax.checkpoint.stored import StoredState


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and numbers, in 16 hexadecimal digits.

    Example:
      >>> digest(np.arange(0, 6, 2)) == digest(np.arange(6)[::2]), digest(np.float32([0.0]))[:8]
      (True, 'c383d0eb')
    """
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def digests_of_rows(batch: Any, numbers: Sequence[int]) -> dict[str, str]:
    """Of each row of a NumPy batch, by the row's number in the global batch.

    Args:
      batch: a pytree of arrays [B, ...].
      numbers: of its B rows.
    """
    leaves = jax.tree.leaves(batch)
    return {
        str(number): hashlib.sha256(
            "".join(digest(np.asarray(leaf[row])) for leaf in leaves).encode()
        ).hexdigest()[:16]
        for row, number in enumerate(numbers)
    }


def digests_of_state(state: Any) -> dict[str, str]:
    """Of each leaf of a state that may lie on the devices of several processes; all call it."""
    return {name: digest(_whole(leaf)) for name, leaf in flatten(state).items()}


def digests_of_checkpoint(
    folder: str | Path, step: int | None = None
) -> tuple[int, dict[str, str]]:
    """The step of a checkpoint, and the same of each leaf that is on disk.

    Args:
      folder: a training folder.
      step: which; None takes the newest.
    """
    stored = StoredState(folder, step)
    return stored.step, {name: digest(stored.read(name)) for name in stored.leaves}


def different(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Names under which two do not have the same digest."""
    return sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))


def _whole(leaf: Any) -> np.ndarray:
    if not hasattr(leaf, "dtype"):
        return np.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
