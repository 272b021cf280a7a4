"""A training folder: whose run it holds, and keeping it to one process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from llmasos_jax.checkpoint import steps
from llmasos_jax.config.build import differences, from_dict, to_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.load import load_tokenizer
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ConfigError, TokenizerError

# What may differ when a run goes on: neither the weights nor the order of the data hang on it.
_FREE = (
    "train.steps",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.eval_batches",
    "train.hooks",
    "checkpoint.",
    "sample.",
    "mesh.",
    "hosts.",
    "kernels.",
)


def newest_step(workdir: Path, config: Config) -> int | None:
    """The step that the folder's run goes on from; None if it has no checkpoint yet.

    Raises:
      ConfigError: the folder holds a run of another config, or something else, or is read-only.
    """
    place = workdir.absolute()
    there = next(p for p in (place, *place.parents) if p.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        why = "is read-only" if there.is_dir() else "is a file"
        raise ConfigError(
            f"cannot write to the training folder {workdir}: {there} {why}; take another --workdir"
        )
    path = workdir / "config.json"
    try:
        if path.exists():
            from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(
            f"{path} is not readable as a resolved config ({error}); if it is another program's, "
            "take another --workdir; else repair it from the one in the newest checkpoint"
        ) from error
    # A config.json without a checkpoint binds nobody: the run that wrote it has kept nothing else.
    found = steps.all_steps(workdir / steps.FOLDER)
    if not found:
        return None
    newest = steps.find_step(workdir, found[-1])
    check_same_run(from_dict(steps.read_json(newest, steps.CONFIG)), config)
    return found[-1]


def check_same_run(before: Config, now: Config) -> None:
    """Raises ConfigError, listing every difference that a run may not have when it goes on.

    Example:
      >>> import dataclasses
      >>> from llmasos_jax.config.build import load_config
      >>> quickstart = load_config("quickstart")
      >>> longer = dataclasses.replace(quickstart.train, steps=9000)
      >>> check_same_run(quickstart, dataclasses.replace(quickstart, train=longer))
    """
    found = [line for line in differences(before, now) if not line.startswith(_FREE)]
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise ConfigError(
            "the config differs from the run in this workdir in what may not change; undo this, or "
            "take another --workdir (steps, logging, evaluation, sampling, checkpoint policy, "
            f"mesh and hosts may change):{lines}"
        )


def saved_tokenizer(workdir: Path) -> Tokenizer | None:
    """The tokenizer of the folder's run; None if it keeps none.

    Raises:
      TokenizerError: it is damaged.
    """
    entry = workdir / "tokenizer" / "entry.json"
    if not entry.exists():
        return None
    try:
        described = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"{entry} is damaged ({error}); delete it, and the tokenizer is made again"
        ) from error
    # The run is this user's own, and its config named the code.
    return load_tokenizer(described, entry.parent, allow_code=True)


@contextlib.contextmanager
def claimed(workdir: Path, config: Config, tokenizer: Tokenizer, *, is_new: bool) -> Iterator[None]:
    """Keeps the folder to this process; writes the config and a new run's tokenizer there.

    Raises:
      ConfigError: another process trains there, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                lock(workdir, stack)
                _write_identity(workdir, config, tokenizer, is_new)
        except OSError as error:
            raise ConfigError(
                f"cannot write to the training folder {workdir} ({error}); take another --workdir"
            ) from error
        yield


def lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    """Refuses a folder that another process trains in: the two would delete each other's steps.

    Args:
      workdir: a folder that is there.
      stack: holds the folder until it is closed.

    Raises:
      ConfigError: another process holds it.
    """
    handle = os.open(workdir, os.O_RDONLY)
    stack.callback(os.close, handle)  # which ends the lock, as the end of the process does
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"another process trains in {workdir}; wait for it, or take another --workdir"
        ) from error
    except OSError:
        return  # a network's file system that locks no folders


def _write_identity(workdir: Path, config: Config, tokenizer: Tokenizer, is_new: bool) -> None:
    folder = workdir / "tokenizer"
    entry = folder / "entry.json"
    _write_json(workdir / "config.json", to_dict(config))
    if is_new and entry.exists():  # of a run that never came to a checkpoint
        shutil.rmtree(folder)
    if not entry.exists():
        folder.mkdir(exist_ok=True)
        _write_json(entry, tokenizer.save(folder))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
