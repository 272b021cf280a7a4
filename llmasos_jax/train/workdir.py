"""A training folder: whose run it holds, and keeping it to one process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from llmasos_jax.checkpoint import manifest, steps
from llmasos_jax.config.build import differences, from_dict, to_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.load import load_tokenizer
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import (
    CheckpointError,
    ConfigError,
    DamagedCheckpointError,
    TokenizerError,
)

_HOLDER = "running.json"

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
      CheckpointError: it has step folders, and none of them is whole.
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
        # A kill leaves none of these: only damage does, and to begin anew would hide it.
        broken = steps.broken_folders(workdir / steps.FOLDER)
        if broken:
            bad = [steps.damaged(f, "it lacks files that every step has") for f in broken]
            raise CheckpointError(steps.all_damaged(workdir / steps.FOLDER, bad))
        return None
    check_same_run(_saved_config(workdir, found), config)
    return found[-1]


def _saved_config(workdir: Path, found: list[int]) -> Config:
    """The config in the newest checkpoint of which it is whole; all else is checked on restore."""
    name = f"{steps.CONFIG}/metadata"
    bad: list[DamagedCheckpointError] = []
    for step in reversed(found):
        folder = steps.find_step(workdir / steps.FOLDER, step)
        try:
            written = manifest.read(folder)
            if written is not None:
                wrong = manifest.check_files(folder, written, names=[name])
                if wrong:
                    raise steps.damaged(folder, wrong[0])
            return from_dict(steps.read_json(folder, steps.CONFIG))
        except DamagedCheckpointError as error:
            bad.append(error)
    if len(bad) == 1:
        raise bad[0]
    raise CheckpointError(steps.all_damaged(workdir / steps.FOLDER, bad))


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


def require_free(workdir: Path) -> None:
    """Refuses a folder that another process trains in, before anything is opened; takes no hold.

    Raises:
      ConfigError: another process holds it.
    """
    if workdir.is_dir():
        with contextlib.ExitStack() as stack:
            # Shared, as the other processes of this run look too; it is taken when all is opened.
            _flock(workdir, stack, fcntl.LOCK_SH)


def lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    """Refuses a folder that another process trains in: the two would delete each other's steps.

    Args:
      workdir: a folder that is there.
      stack: holds the folder until it is closed.

    Raises:
      ConfigError: another process holds it.
    """
    if not _flock(workdir, stack, fcntl.LOCK_EX):
        return
    holder = workdir / _HOLDER
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    _write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    stack.callback(holder.unlink, missing_ok=True)


def _flock(workdir: Path, stack: contextlib.ExitStack, kind: int) -> bool:
    """Locks the folder; False on a network's file system that locks no folders.

    The lock ends with the process, however that ends, so what a killed run leaves never blocks;
    the file that names the process is only for the message.
    """
    handle = os.open(workdir, os.O_RDONLY)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"another process trains in {workdir}{_holder(workdir)}; wait for it, or take another "
            "--workdir"
        ) from error
    except OSError:
        return False
    return True


def _holder(workdir: Path) -> str:
    try:
        said = json.loads((workdir / _HOLDER).read_text(encoding="utf-8"))
        return f" (process {said['pid']} on {said['host']}, since {said['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""  # it has begun this very moment


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
