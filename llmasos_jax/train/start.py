"""What a run takes over from another: its newest weights, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.orbax import restore_part
from llmasos_jax.config.build import differences, from_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import CheckpointError, ConfigError
from llmasos_jax.train.workdir import saved_tokenizer
from llmasos_jax.types import Tree

# What may differ from the run before: the weights mean the same, and so do the ids.
_FREE = (
    "name:",
    "model.context_length:",
    "data.sequence_length:",
    "objective.",
    "optim.",
    "train.",
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

    Raises:
      CheckpointError: no checkpoint, or its leaves are not this model's; every one is listed.
    """
    return restore_part(_folder(cfg), "params", abstract_params)


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
