"""Files of a cache: whole or not there, whoever else writes them."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmasos_jax.errors import DataError

TEMPORARY = ".tmp-"  # begins the name of a file that is not whole
_NEW_S = 60.0


@contextlib.contextmanager
def _named_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to the cache {folder} ({error.strerror}); make it writable, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that no reader sees half of it.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "deep" / "x.bin"
      >>> write_atomically(path, b"abc")
      >>> path.read_bytes()
      b'abc'
    """
    with _named_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_writable(path.parent)
    with renamed(path) as temporary:
        temporary.write_bytes(content)


def _require_writable(folder: Path) -> None:
    handle, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
    os.close(handle)
    os.unlink(name)


@contextlib.contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name when all went well.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "x.txt"
      >>> with renamed(path) as temporary:
      ...     _ = temporary.write_text("abc")
      >>> path.read_text()
      'abc'
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files that nobody else reads; these are like others.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def build_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary folder, then gives it its name.

    If another process was faster, its folder is kept and this one dropped: both hold the same.
    What killed processes left of this folder goes.
    """
    with _named_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_abandoned(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name, suffix=".tmp"))
        handle = os.open(temporary, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a disk without locks keeps what is abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        write(temporary)
        for file in [path for path in temporary.rglob("*") if path.is_file()]:
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def _drop_abandoned(path: Path) -> None:
    """Removes temporary folders of `path` that no process holds: a dead one's lock is free.

    One that is new may belong to a process that is about to lock it.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}*.tmp"):
        with contextlib.suppress(OSError):  # another process writes there, or removes it too
            if time.time() - left.stat().st_mtime < _NEW_S:
                continue
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; the lock goes with the process, also by SIGKILL.

    Raises:
      DataError: another process has it.
    """
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process is at work in {folder}; wait for it, or give another folder"
            ) from error
        yield
    finally:
        os.close(handle)
