"""The files that a stream reads, by which a place in it is known to be one in the same text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmasos_jax.errors import DataError

_SHOWN = 3  # files that a message names


def sizes_of(files: Sequence[Path], root: Path) -> dict[str, int]:
    """Bytes of each file, by its path under a folder.

    Raises:
      DataError: one cannot be looked at.
    """
    try:
        return {os.path.relpath(path, root): path.stat().st_size for path in files}
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}); check data.path"
        ) from error


def require_same(saved: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Refuses to go on in other files than those that a place was kept of.

    Raises:
      DataError: a file was added, is gone or has another size; says which.

    Example:
      >>> require_same({"a.jsonl": 7}, {"a.jsonl": 7})
    """
    lines = [f"{name} is gone" for name in saved if name not in now]
    lines += [f"{name} is new" for name in now if name not in saved]
    lines += [
        f"{name} has {now[name]:,} bytes, and had {size:,}"
        for name, size in saved.items()
        if now.get(name, size) != size
    ]
    if not lines:
        return
    more = f", and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    raise DataError(
        f"the stream's files are not those that the run was made on ({'; '.join(lines[:_SHOWN])}"
        f"{more}), so its place in them means nothing; give them back as they were, or start a new "
        "run"
    )
