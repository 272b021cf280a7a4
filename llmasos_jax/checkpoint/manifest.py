"""The list of a step folder's files with their hashes, and of its leaves with their sums.

`manifest/manifest.json` is written last, into the folder that has not its name yet: a step is there
with its list or not at all. Two files have none, as Orbax changes them at the very end, and nothing
that a run goes on from is in them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from llmasos_jax import __version__
from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.leaves import Leaf
from llmasos_jax.errors import CheckpointError, DamagedCheckpointError

# Takes a value of this process, gives those of all, in order (`parallel.roll.Roll.gather`).
Gather = Callable[[Any], list[Any]]

FORMAT = 1
# What a system says of a file that is gone, is something else now, or lies on bad blocks.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
_NOT_LISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of one file: its size in bytes and its SHA-256, hexadecimal."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was written, as it was when it was whole.

    Attributes:
      step: of the run.
      files: by path in the step folder.
      leaves: what each leaf is, by name.
      sums: of each leaf, see `sums.py`.
      versions: of the programs that wrote it.
    """

    step: int
    files: Mapping[str, FileEntry]
    leaves: Mapping[str, Leaf]
    sums: Mapping[str, int]
    versions: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(entry.num_bytes for entry in self.files.values())


def write(folder: Path, step: int, leaves: Mapping[str, Leaf], sums: Mapping[str, int]) -> None:
    """Writes the manifest of a step folder whose other files are all there.

    Args:
      folder: still under the name that it has while it is written.
      step: of the run.
      leaves: what each is.
      sums: of each.
    """
    names = [name for name in list_files(folder) if name != steps.MANIFEST_FILE]
    with ThreadPoolExecutor(1) as pool:
        entries = list(pool.map(lambda name: hash_file(folder / name), names))
    body = {
        "format": FORMAT,
        "step": step,
        "versions": _versions(),
        "files": {
            name: {"bytes": entry.num_bytes, "sha256": entry.sha256}
            for name, entry in zip(names, entries, strict=True)
        },
        "leaves": {
            name: {"shape": list(leaf.shape), "dtype": leaf.dtype, "sum": f"{sums[name]:016x}"}
            for name, leaf in sorted(leaves.items())
        },
    }
    body["sha256"] = _digest(body)
    text = json.dumps(body, indent=1) + "\n"
    path = folder / steps.MANIFEST_FILE
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Manifest | None:
    """The manifest of a step folder; None if it was written before there were any.

    Raises:
      DamagedCheckpointError: it is gone, or is not what was written.
      CheckpointError: the system does not let it be read, which says nothing of what is in it.
    """
    path = folder / steps.MANIFEST_FILE
    if not path.parent.exists():
        try:
            is_lost = steps.had_manifest(folder)
        except OSError as error:
            mark = _NOT_LISTED[0]
            raise steps.damaged(folder, _unread(folder / mark, mark, error)) from error
        if is_lost:
            raise steps.damaged(folder, f"{steps.MANIFEST}/ is missing")
        return None
    try:
        body = json.loads(path.read_bytes())
        said = body.pop("sha256")
    except OSError as error:
        raise steps.damaged(folder, _unread(path, steps.MANIFEST_FILE, error)) from error
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        why = f"{steps.MANIFEST_FILE}: {str(error) or type(error).__name__}"
        raise steps.damaged(folder, why) from error
    if _digest(body) != said:
        raise steps.damaged(folder, f"{steps.MANIFEST_FILE} has another SHA-256 than it says")
    if body["format"] > FORMAT:
        raise CheckpointError(
            f'checkpoint "{folder}" has a manifest of format {body["format"]}, and this program '
            f"knows {FORMAT}; take a newer one"
        )
    if str(body["step"]) != folder.name:
        raise steps.damaged(folder, f"{steps.MANIFEST_FILE} is that of step {body['step']}")
    leaves = body["leaves"]
    return Manifest(
        step=body["step"],
        files={n: FileEntry(e["bytes"], e["sha256"]) for n, e in body["files"].items()},
        leaves={n: Leaf(tuple(leaf["shape"]), leaf["dtype"]) for n, leaf in leaves.items()},
        sums={n: int(leaf["sum"], 16) for n, leaf in leaves.items()},
        versions=body["versions"],
    )


def check_files(
    folder: Path,
    manifest: Manifest,
    share: tuple[int, int] = (0, 1),
    names: Sequence[str] | None = None,
) -> list[str]:
    """What is wrong with the files of a step folder; one line for each.

    Args:
      folder: the step folder.
      manifest: of it.
      share: (index, count) of this process, if several look at some of the files each.
      names: which files; None for all.

    Raises:
      CheckpointError: the system does not let one be read, which says nothing of what is in it.
    """
    # The largest first, so that no process or thread ends up with all of them.
    wanted = manifest.files if names is None else names
    ordered = sorted(wanted, key=lambda name: (-manifest.files[name].num_bytes, name))
    mine = ordered[share[0] :: share[1]]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _wrong(folder, name, manifest.files[name]), mine)
        return [line for line in found if line is not None]


def require_sound(
    folder: Path, gather: Gather | None = None, share: tuple[int, int] = (0, 1)
) -> Manifest | None:
    """Hashes the files of a step folder; one written before there were manifests is taken as it is.

    Args:
      folder: the step folder.
      gather: what several processes agree through, which then all come to the same verdict.
      share: (index, count) of this process, which looks at some of the files.

    Returns:
      Its manifest; None where there is none.

    Raises:
      DamagedCheckpointError: a file is gone or is not what was written.
      CheckpointError: the system does not let one be read, which says nothing of what is in it.
    """
    written, lines, unread = None, [], None
    try:
        written = read(folder)
        lines = [] if written is None else check_files(folder, written, share)
    except DamagedCheckpointError as error:
        lines = [error.what]
    except CheckpointError as error:
        unread = str(error)
    found = [(lines, unread)] if gather is None else gather([lines, unread])
    for _, text in found:
        if text is not None:
            raise CheckpointError(text)
    lines = list(dict.fromkeys(line for each, _ in found for line in each))
    if lines:
        raise steps.damaged(folder, first_of(lines))
    return written


def first_of(lines: Sequence[str]) -> str:
    """What one line says of several faults."""
    return lines[0] + (f", and {len(lines) - 1} more" if len(lines) > 1 else "")


def list_files(folder: Path) -> list[str]:
    """The files that a manifest lists, by path in the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name not in _NOT_LISTED)


def hash_file(path: Path) -> FileEntry:
    """Reads a file once for its size and SHA-256."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256")
        return FileEntry(file.tell(), found.hexdigest())


def _wrong(folder: Path, name: str, wanted: FileEntry) -> str | None:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != wanted.num_bytes:
            return f"{name} has {size:,} bytes, and {wanted.num_bytes:,} were written"
        found = hash_file(path)
    except OSError as error:
        return _unread(path, name, error)
    if found.sha256 != wanted.sha256:
        return (
            f"{name} has changed since it was written (SHA-256 {found.sha256[:12]}..., "
            f"written {wanted.sha256[:12]}...)"
        )
    return None


def check_sums(
    found: Mapping[str, int], manifest: Manifest, names: Sequence[str] | None = None
) -> list[str]:
    """The leaves whose numbers are not those that were saved; one line for each."""
    wanted = manifest.sums if names is None else {name: manifest.sums[name] for name in names}
    return [
        f"leaf {name} has the sum {found.get(name, 0):016x}, and {value:016x} was saved"
        for name, value in wanted.items()
        if found.get(name, 0) != value
    ]


def _unread(path: Path, name: str, error: OSError) -> str:
    """What is wrong with a file that cannot be read, if that is the file's own fault."""
    if error.errno not in _DAMAGE:
        raise CheckpointError(
            f'cannot read "{path}" ({error.strerror}); the checkpoint may be whole: see to the '
            "permissions or the file system, and try again"
        ) from error
    return f"{name} is missing" if error.errno == errno.ENOENT else f"{name}: {error.strerror}"


def _digest(body: Mapping[str, Any]) -> str:
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "llmasos": __version__,
        **{name: metadata.version(name) for name in ("jax", "orbax-checkpoint", "tensorstore")},
    }
