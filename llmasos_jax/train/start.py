"""What a run takes over from another: its newest weights, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.orbax import restore_part
from llmasos_jax.checkpoint.stored import MASTERS, read_leaves
from llmasos_jax.config.build import differences, from_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import CheckpointError, ConfigError
from llmasos_jax.train.master import join
from llmasos_jax.train.weights import map_named
from llmasos_jax.train.workdir import saved_tokenizer
from llmasos_jax.types import Tree

_PARAMS = "params"

# What may differ from the run before: the weights mean the same, and so do the ids.
_FREE = (
    "name:",
    "model.context_length:",
    "data.sequence_length:",
    "objective.",
    "optim.",
    "train.",
    "precision.",
    "kernels.",
    "hosts.",
    "mesh.",
    "checkpoint.",
    "sample.",
)


def tokenizer_of(cfg: Config) -> Tokenizer:
    """The tokenizer of the run in `train.start_from`, whose ids its weights know.

    Raises:
      CheckpointError: that folder has no checkpoint.
      ConfigError: the two configs differ in more than they may.
      TokenizerError: the tokenizer is damaged.
    """
    folder = _folder(cfg)
    check_start(from_dict(steps.read_json(folder, steps.CONFIG)), cfg)
    tokenizer = saved_tokenizer(steps.training_folder(folder))
    if tokenizer is None:
        raise CheckpointError(
            f'train.start_from="{cfg.train.start_from}" has no tokenizer/entry.json; give the '
            "whole training folder, not its checkpoints alone"
        )
    return tokenizer


def weights_of(cfg: Config, abstract_params: Tree) -> Tree:
    """The newest weights of the run in `train.start_from`.

    Args:
      cfg: the new run.
      abstract_params: its weights' shapes, dtypes and shardings.

    Returns:
      Each in the dtype that it has there; the float32 copy of a bfloat16 weight where there is one.

    Raises:
      CheckpointError: no checkpoint, or its leaves are not this model's; every one is listed.
    """
    folder = _folder(cfg)
    leaves = read_leaves(folder)

    def stored(part: str) -> Callable[[tuple[str, ...], Any], Any]:
        """The weight as that run has it: what it is to become here is the new state's business."""

        def like(path: tuple[str, ...], leaf: Any) -> Any:
            found = leaves.get("/".join((part, *path)))
            if found is None:
                return leaf if part == _PARAMS else optax.MaskedNode()
            is_float = found.dtype in ("float32", "bfloat16")
            dtype = found.dtype if is_float else leaf.dtype
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

        return like

    params = restore_part(folder, _PARAMS, map_named(stored(_PARAMS), abstract_params))
    if not any(name.startswith(f"{MASTERS}/") for name in leaves):
        return params
    masters = restore_part(folder, MASTERS, map_named(stored(MASTERS), abstract_params))
    return join(params, masters)


def check_start(before: Config, now: Config) -> None:
    """Raises ConfigError, listing every difference that a run may not have to the one before it.

    Example:
      >>> import dataclasses
      >>> from llmasos_jax.config.build import load_config
      >>> tiny = load_config("tiny")
      >>> shorter = dataclasses.replace(tiny.data, sequence_length=32)
      >>> check_start(tiny, dataclasses.replace(tiny, data=shorter))
    """
    found = [line for line in differences(before, now) if not line.startswith(_FREE)]
    if now.model.position == "learned":
        # The table has a row for each position, so a longer one would have rows nobody trained.
        context = (before.model.context_length, now.model.context_length)
        if context[0] != context[1]:
            found.append(
                f"model.context_length: {context[0]} -> {context[1]} (with learned positions)"
            )
    if found:
        raise ConfigError(
            f'train.start_from="{now.train.start_from}" is a run of another config; only the '
            "sequence length, the objective and how it is trained may differ, so undo: "
            + "; ".join(found)
        )


def _folder(cfg: Config) -> Path:
    """The newest step folder of the run that the config starts from."""
    try:
        return steps.find_step(str(cfg.train.start_from))
    except CheckpointError as error:
        raise CheckpointError(f"train.start_from: {error}") from error
