"""What the base says of each row, once: for objectives that stay near it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from llmasos_jax.config.schema import Config
from llmasos_jax.data.batches import fixed_batch
from llmasos_jax.data.examples import Examples
from llmasos_jax.data.records.preferences import with_reference
from llmasos_jax.errors import ConfigError
from llmasos_jax.progress import Progress
from llmasos_jax.train.pretrained import Pretrained, moved_weights
from llmasos_jax.train.trained import together, without_teacher
from llmasos_jax.types import Tree

if TYPE_CHECKING:
    from llmasos_jax.train.step import Trainer


def referenced(
    trainer: Trainer, examples: Examples, base: Pretrained | None, frozen: Tree, cache: Path
) -> Examples:
    """The examples with what the base says of them, computed once and kept in the cache.

    Args:
      trainer: of the run; its objective has `reference`.
      examples: the rows, not knowing it yet.
      base: the model.
      frozen: its weights that the run leaves as they are.
      cache: folder of what can be made again.

    Raises:
      ConfigError: the run has no base.
    """
    cfg = trainer.cfg
    if base is None:
        raise ConfigError(
            f'objective.name="{cfg.objective.name}" compares with the model that it began with; '
            "set finetune.base, and start it with `llmasos finetune`"
        )
    path = cache / f"reference-{_key(cfg, examples.digest)}.npz"
    found = _kept(path, examples)
    if found is None:
        moved = moved_weights(trainer, jax.random.key(cfg.train.seed), base, frozen)
        sides = (examples.train.rows, examples.heldout.rows)
        with Progress("Scoring pairs with the base", sum(map(len, sides))) as bar:
            found = tuple(_log_probs(trainer, rows, moved, frozen, bar) for rows in sides)
        if jax.process_index() == 0:
            cache.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.stem}.{os.getpid()}.npz")
            np.savez(part, train=found[0], heldout=found[1])
            os.replace(part, path)
    return with_reference(examples, *found)


def _key(cfg: Config, digest: str) -> str:
    """Of all that the numbers follow from: the rows, the model and how it is computed.

    Example:
      >>> from llmasos_jax.config.build import load_config
      >>> len(_key(load_config("tiny"), "of the rows"))
      32
    """
    base = (cfg.finetune.base_sha256, cfg.model, cfg.finetune.quantize)
    said = (digest, base, cfg.precision, cfg.kernels, cfg.train.loss_chunk)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def _kept(path: Path, examples: Examples) -> tuple[np.ndarray, np.ndarray] | None:
    """What an earlier run wrote, if all processes see it: else all of them compute."""
    found = None
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            found = (arrays["train"], arrays["heldout"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        found = None  # not there, or damaged: it is made again
    lengths = (len(examples.train), len(examples.heldout))
    is_right = found is not None and tuple(map(len, found)) == lengths
    if jax.process_count() > 1:
        is_right = bool(np.all(multihost_utils.process_allgather(np.array([is_right]))))
    return found if is_right else None


def _log_probs(
    trainer: Trainer, rows: Sequence[Any], moved: Tree, frozen: Tree, bar: Progress
) -> np.ndarray:
    """float32 [rows, 2], in batches of the run's size; padding fills the last one."""
    objective, size = trainer.objective, trainer.cfg.train.batch_size
    says = objective.reference
    if says is None:
        raise TypeError("this objective asks nothing of a reference")

    def run(params: Tree, batch: Any, _: Tree, frozen: Tree) -> jax.Array:
        model = trainer.definition.bind(together(params, without_teacher(frozen)))
        return says(model, batch, trainer.runtime)

    program: Any = None
    found = []
    for start in range(0, len(rows), size):
        numbers = [start + row for row in trainer.own_rows]
        batch = trainer.put(fixed_batch(rows, numbers, trainer.cfg.data.seed, objective.prepare))
        if program is None:
            where = PartitionSpec(trainer.batch_sharding.spec[0])
            program = jax.jit(trainer.manually(run, batch, where))
        values = multihost_utils.process_allgather(program(moved, batch, {}, frozen), tiled=True)
        found.append(np.asarray(values))
        bar.advance(min(size, len(rows) - start))
    if not found:
        return np.zeros((0, 2), np.float32)
    return np.concatenate(found)[: len(rows)]
