"""The sha256 of a large file: computed once, remembered while size and time stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from llmasos_jax.config.files import cache_folder
from llmasos_jax.errors import ConfigError
from llmasos_jax.progress import Progress

_CHUNK = 2**20


def sha256_of(path: Path, *, remember: bool = True) -> str:
    """The sha256 of a file, 64 hexadecimal digits.

    Args:
      path: the file.
      remember: whether the answer may come from, and goes into, the user's cache folder. There it
        is good for the file of this path, size and time of change alone.

    Raises:
      OSError: the file cannot be read.
    """
    real = path.resolve(strict=True)
    stat = real.stat()
    stamp = [str(real), stat.st_size, stat.st_mtime_ns]
    note = _note_of(real) if remember else None
    if note is not None and (known := _read(note, stamp)):
        return known
    digest = hashlib.sha256()
    with real.open("rb") as file, Progress("check", stat.st_size, is_bytes=True) as progress:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.advance(len(chunk), path.name)
    if note is not None:
        _write(note, [*stamp, digest.hexdigest()])
    return digest.hexdigest()


def remember(path: Path, digest: str) -> None:
    """Notes the sha256 of a file that was computed elsewhere just now."""
    real = path.resolve(strict=True)
    stat = real.stat()
    note = _note_of(real)
    if note is not None:
        _write(note, [str(real), stat.st_size, stat.st_mtime_ns, digest])


def git_sha1_of(path: Path) -> str:
    """The name that git gives a file's content: what the hub calls a small file's etag."""
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


def _note_of(real: Path) -> Path | None:
    try:
        folder = cache_folder() / "hashes"
    except ConfigError:
        return None  # no cache folder: it is computed every time
    return folder / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"


def _read(note: Path, stamp: list[str | int]) -> str | None:
    try:
        *kept, digest = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return digest if kept == stamp and isinstance(digest, str) and len(digest) == 64 else None


def _write(note: Path, values: list[str | int]) -> None:
    # A cache that cannot be written costs the time to compute it again, nothing else.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(values), encoding="utf-8")
        os.replace(temporary, note)
