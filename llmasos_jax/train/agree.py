"""What the processes of a run must agree on before they train together."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from llmasos_jax import __version__
from llmasos_jax.checkpoint import steps
from llmasos_jax.config.build import differences, from_dict, to_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, DataError
from llmasos_jax.parallel.roll import Roll

_SEEN_S = 10.0  # a file that one host writes is seen by the others after so long at the latest


def check_same(roll: Roll | None, config: Config, workdir: Path, step: int | None) -> None:
    """Compares config, versions and training folder over all processes.

    Also lets the last line after a loss say where the run goes on from.

    Args:
      roll: None does nothing.
      config: of this process; addresses may differ.
      workdir: the training folder, which all processes share.
      step: that this process found there.

    Raises:
      ConfigError: one differs from process 0's; the message lists in what.
    """
    if roll is None:
        return
    roll.advice = lambda: _advice(workdir)
    said = to_dict(config)
    said.pop("hosts")
    versions = [f"llmasos {__version__}", f"jax {metadata.version('jax')}"]
    first, *others = roll.gather({"config": said, "versions": versions, "step": step})
    for number, other in enumerate(others, 1):
        who = roll.who(number)
        if other["versions"] != first["versions"]:
            raise ConfigError(
                f"{who} has {', '.join(other['versions'])}, process 0 "
                f"{', '.join(first['versions'])}; install the same on all hosts"
            )
        if other["config"] != first["config"]:
            found = differences(from_dict(first["config"]), from_dict(other["config"]))
            raise ConfigError(
                f"{who} was started with another config than process 0: {'; '.join(found)}; give "
                "all the same"
            )
        if other["step"] != first["step"]:
            raise ConfigError(
                f"{who} finds {_step(other['step'])} in {workdir}, process 0 "
                f"{_step(first['step'])}; --workdir has to be one folder that all hosts share"
            )


@contextlib.contextmanager
def first_here(roll: Roll | None) -> Iterator[None]:
    """Lets the first process of each host do something, then the others, who find it in a cache."""
    if roll is not None and not roll.is_first_here:
        roll.gather(None)
    yield
    if roll is not None and roll.is_first_here:
        roll.gather(None)


def check_same_text(roll: Roll | None, digest: str) -> None:
    """Compares the token ids over all processes.

    Raises:
      DataError: a host has another text or tokenizer.
    """
    found = [digest] if roll is None else roll.gather(digest)
    for number, other in enumerate(found):
        if roll is not None and other != found[0]:
            raise DataError(
                f"{roll.who(number)} has other training text than process 0 (digest {other[:12]} "
                f"and {found[0][:12]}); give all hosts the same files, tokenizer and Python"
            )


def check_shared(roll: Roll | None, workdir: Path) -> None:
    """Checks that the training folder is one for all hosts, before anything is saved there.

    Raises:
      ConfigError: this process does not see what process 0 wrote.
    """
    if roll is None:
        return
    path = workdir / "config.json"
    digest = roll.gather(_digest(path) if roll.place.index == 0 else None)[0]
    until_s = time.monotonic() + _SEEN_S
    while _digest(path) != digest:
        if time.monotonic() > until_s:
            raise ConfigError(
                f"{roll.who(roll.place.index)} does not see {path}, which process 0 has written; "
                "--workdir has to be one folder that all hosts share"
            )
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(workdir)  # so that a network's file system looks again


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _step(step: int | None) -> str:
    return "no checkpoint" if step is None else f"step {step}"


def _advice(workdir: Path) -> str:
    found = steps.all_steps(workdir / steps.FOLDER)
    where = f"goes on from step {found[-1]}" if found else "begins anew (nothing was saved yet)"
    return f"start the run again on all hosts: it {where}"
