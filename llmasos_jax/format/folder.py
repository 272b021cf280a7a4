"""The files of a model folder: never outside it when reading, all or nothing when writing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import shown

MANIFEST = "model.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def file_in(folder: Path, name: str) -> Path:
    """The path of one of a model's files.

    Raises:
      FormatError: the name is not a plain file name, the file is absent or is no regular file, or
        it is a link that leaves the folder.
    """
    if not _PLAIN.fullmatch(name):
        raise FormatError(
            f'"{shown(name)}" is not the name of a file in the model\'s folder: letters, digits, '
            '".", "_" and "-", no path'
        )
    path = folder / name
    try:
        real = path.resolve(strict=True)
        if real.parent not in _homes(folder.resolve(strict=True)):
            raise FormatError(
                f'"{path}" is a link that leaves the model\'s folder; copy the file in'
            )
        if not stat.S_ISREG(real.stat().st_mode):
            raise FormatError(f'"{path}" is not a regular file')
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f'cannot read "{path}": {reason}; the model is incomplete') from error
    return real


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where a model's files may be: in its folder, or where the hub's cache keeps contents."""
    if folder.parent.name == "snapshots":
        return folder, folder.parent.parent / "blobs"
    return (folder,)


def read_bytes(path: Path, limit: int) -> bytes:
    """Reads a small file.

    Raises:
      FormatError: it has more than `limit` bytes, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise FormatError(f'cannot read "{path}": {error.strerror or error}') from error
    if len(raw) > limit:
        raise FormatError(f"{path.name} has more than the {limit} bytes that the format allows")
    return raw


def find_manifest(source: str | os.PathLike[str]) -> Path:
    """The path of `model.json`, given it or its folder.

    Raises:
      FormatError: there is none.
    """
    path = Path(source)
    try:
        if path.is_dir() and os.path.lexists(path / MANIFEST):
            file_in(path, MANIFEST)
            return path / MANIFEST
        if path.is_file() and path.suffix == ".json":
            return path
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise FormatError(f"cannot read {shown(str(source))!r}: {error}") from error
    raise FormatError(
        f'"{source}" is not a model: expected a {MANIFEST} or the folder that has one'
    )


@contextlib.contextmanager
def replaced_folder(out: Path, own_files: set[str]) -> Iterator[Path]:
    """Gives an empty folder to fill; on success it takes the place of `out` in one step.

    A process killed at any moment leaves `out` as it was. What it leaves beside it, the next call
    for the same `out` removes.

    Args:
      out: the model's folder, new or an older model.
      own_files: names that an older model's own files have, beside `model.json`.

    Raises:
      FormatError: `out` is something else than a model, or the disk does not take it.
    """
    # A relative or linked `out` must name the same place at the end as at the start.
    out = Path(os.path.realpath(out))
    _refuse_foreign(out, own_files)
    tag = f".{out.name}.writing-{socket.gethostname()}-"
    temporary = out.parent / f"{tag}{os.getpid()}"
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out.parent, tag)
        temporary.mkdir()
    except OSError as error:
        _remove_empty(made)
        raise write_error(out, error) from error
    try:
        yield temporary
        sync(temporary)
        _put_in_place(temporary, out)
        sync(out.parent)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, the innermost first, up to one that holds something or is not there."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _refuse_foreign(out: Path, own_files: set[str]) -> None:
    try:
        if not out.exists():
            return
        names = {child.name for child in out.iterdir()} if out.is_dir() else set()
    except OSError as error:
        raise write_error(out, error) from error
    if not out.is_dir():
        raise FormatError(f'"{out}" is a file; name a folder for the model')
    if names and MANIFEST not in names:
        raise FormatError(
            f'"{out}" holds other things ("{min(names)}") and no model; name a new or empty folder'
        )
    others = sorted(names - own_files - {MANIFEST})
    if others:
        raise FormatError(
            f'"{out}" holds a model and other things ("{others[0]}") that replacing it would lose; '
            "move them away or name another folder"
        )


def _remove_leftovers(parent: Path, tag: str) -> None:
    for child in parent.iterdir():
        pid = child.name.removeprefix(tag)
        if child.name.startswith(tag) and pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(child, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _put_in_place(temporary: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        os.rename(temporary, out)
        return
    if _exchange(temporary, out):
        return
    # Where the system cannot exchange two folders, the older one steps aside for an instant.
    aside = temporary.with_name(f"{temporary.name}.old")
    os.rename(out, aside)
    try:
        os.rename(temporary, out)
    except OSError:
        os.rename(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two folders in one step (Linux); False where that cannot be done."""
    at_cwd, exchange_flag = -100, 2
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return function(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange_flag) == 0


def sync(folder: Path) -> None:
    """Makes a folder's names lasting (the files in it are synchronised when they are written)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_error(out: Path, error: OSError) -> FormatError:
    """The one line for a disk that does not take the model."""
    return FormatError(
        f'cannot write the model to "{out}": {error.strerror or error}; nothing there was changed. '
        "Check the free space and the permissions"
    )
