"""Where text comes from: an indexed source of documents, always in the same order."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import itertools
import os
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, overload, runtime_checkable

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.columns import read_cell
from llmasos_jax.errors import DataError, LLMasOSError

# A single text file is cut into documents of about so many characters: a split needs several.
PIECE_CHARS = 16_384
# Installed packages are not the library. Its tests are as long as all the rest, and some are broken
# text on purpose; `encodings` and `pydoc_data` are tables that programs wrote.
_NOT_SOURCE = frozenset(
    ("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test")
    + ("encodings", "pydoc_data")
)


@runtime_checkable
class Source(Protocol):
    """What a corpus is read from: documents by number, always in the same order.

    Attributes:
      key: a hash that changes when the data does; what was made of the data is kept under it.
    """

    key: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


class Documents(Sequence[str]):
    """Documents, read when they are asked for: a `Source`.

    Args:
      read: returns document i.
      length: how many there are.
      key: a hash that changes when the data does.
    """

    def __init__(self, read: Callable[[int], str], length: int, key: str) -> None:
        self.read, self.key = read, key
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.read(i) for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.read(index)


def documents(data: DataConfig, cache: Path | None = None) -> Documents:
    """Opens the source that a config names.

    Args:
      data: `source` is a key of `SOURCES`, or `"package.module:name"` of a callable from a
        DataConfig to a `Source`, or to any sequence of strings.
      cache: folder where "jsonl" and "parquet" keep their tables; None takes a temporary one.

    Returns:
      The documents, the first `data.max_documents` of them if that is set.

    Raises:
      ConfigError: no such source.
      DataError: nothing at the path, an empty file, not JSON, no such field; a text file or record
        that is not UTF-8 shows when its document is read.

    Example:
      >>> documents(DataConfig(source="stdlib", max_documents=3))[0].startswith('\"\"\"')
      True
    """
    open_source = resolve(data.source, SOURCES, "data.source")
    if data.source in SOURCES:
        found = open_source(data, cache or Path(tempfile.mkdtemp(prefix="llmasos-")))
    else:
        found = _from_sequence(open_source(data), data.source)
    if len(found) == 0:
        raise DataError(f'data.source="{data.source}" gave no document; expected at least one')
    read = partial(_text_of, found.read, data.source)
    if data.max_documents is None or data.max_documents >= len(found):
        return Documents(read, len(found), found.key)
    return Documents(read, data.max_documents, f"{found.key}-{data.max_documents}")


def _text_of(read: Callable[[int], object], source: str, index: int) -> str:
    """One document; whatever a source raises or gives, the message names source and document."""
    try:
        text = read(index)
    except LLMasOSError:
        raise
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(
            f'data.source="{source}": document {index} cannot be read ({line}); mend the source, '
            "or leave the document out of it"
        ) from error
    if not isinstance(text, str):
        raise DataError(
            f'data.source="{source}": document {index} is a {type(text).__name__}, not a string; '
            "convert it"
        )
    return text


def _from_sequence(texts: object, name: str) -> Documents:
    if isinstance(texts, Source):
        return Documents(texts.__getitem__, len(texts), texts.key)
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise DataError(
            f'data.source="{name}" gave a {type(texts).__name__}; expected a sequence of strings '
            "(a list, or "
            "__len__ and __getitem__ of collections.abc.Sequence)"
        )
    digest = hashlib.sha256()
    for i in range(len(texts)):
        text = _text_of(texts.__getitem__, name, i)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return Documents(texts.__getitem__, len(texts), digest.hexdigest())


def _stdlib(data: DataConfig, cache: Path) -> Documents:
    root = Path(sysconfig.get_paths()["stdlib"])
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_SOURCE)
        files += [Path(folder, n) for n in names if n.endswith(".py")]
    if not files:
        raise DataError(
            f"the Python running here has no source of its library under {root}; expected .py "
            "files: use another "
            'Python, or data.source="text" with a path'
        )
    return _from_files(sorted(files), root)


def _text(data: DataConfig, cache: Path) -> Documents:
    files, root = matching_files(data, _PATTERNS["text"])
    if len(files) > 1:
        return _from_files(files, root)
    pieces = _cut_at_lines(read_text(files[0]), PIECE_CHARS)
    return Documents(pieces.__getitem__, len(pieces), _stat_key(files, root))


def _from_files(files: Sequence[Path], root: Path) -> Documents:
    return Documents(lambda i: read_text(files[i]), len(files), _stat_key(files, root))


def _jsonl(data: DataConfig, cache: Path) -> Documents:
    from llmasos_jax.data.tables import read_jsonl  # `datasets` takes half a second to import

    files, root = matching_files(data, _PATTERNS["jsonl"])
    key = _stat_key(files, root)
    column = read_jsonl(files, data.text_field, cache / "datasets", key)
    return Documents(column.__getitem__, len(column), f"{key}-{data.text_field}")


def _parquet(data: DataConfig, cache: Path) -> Documents:
    from llmasos_jax.data.tables import read_parquet

    files, root = matching_files(data, _PATTERNS["parquet"])
    column, where = read_parquet(files, data.text_field, cache / "datasets")
    key = f"{_stat_key(files, root)}-{data.text_field}"
    return Documents(lambda i: read_cell(lambda: column[i], where(i)), len(column), key)


def _arrow(data: DataConfig, cache: Path) -> Documents:
    from llmasos_jax.data.arrow import read_arrow

    files, root = matching_files(data, _PATTERNS["arrow"])
    column, where = read_arrow(files, data.text_field)
    read = lambda i: read_cell(column[i].as_py, where(i))
    return Documents(read, len(column), f"{_stat_key(files, root)}-{data.text_field}")


def _huggingface(data: DataConfig, cache: Path) -> Documents:
    from llmasos_jax.data.named_tables import read_named

    column, key = read_named(data)
    where = lambda i: f'dataset "{data.path}" ({data.split}), row {i}'
    return Documents(lambda i: read_cell(lambda: column[i], where(i)), len(column), key)


def _array_record(data: DataConfig, cache: Path, *, is_json: bool = True) -> Documents:
    from llmasos_jax.data.array_records import RecordTexts

    files, root = matching_files(data, _PATTERNS[data.source])
    field = data.text_field if is_json else None
    texts = RecordTexts(files, field)
    return Documents(texts.__getitem__, len(texts), f"{_stat_key(files, root)}-{field}")


def _prepared(data: DataConfig, cache: Path) -> Documents:
    from llmasos_jax.data.prepared.read import prepared_documents  # which imports this module

    return prepared_documents(data)


SOURCES: dict[str, Callable[[DataConfig, Path], Documents]] = {
    "stdlib": _stdlib,
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "arrow": _arrow,
    "huggingface": _huggingface,
    "arrayrecord": _array_record,
    "arrayrecord_text": partial(_array_record, is_json=False),
    "prepared": _prepared,
}


# What of a folder is read.
_PATTERNS = {
    "text": "*",
    "jsonl": "*.jsonl",
    "parquet": "*.parquet",
    "arrow": "*.arrow",
    "arrayrecord": "*.array*record*",
    "arrayrecord_text": "*.array*record*",
}


def matching_files(data: DataConfig, pattern: str) -> tuple[list[Path], Path]:
    """Returns the files that `data.path` names, sorted, and the folder they stand under.

    Args:
      data: `path` is a file, a folder (searched below for `pattern`) or a glob.
      pattern: what to take from a folder.

    Raises:
      DataError: no path is set, nothing matches, or all that matches is empty.
    """
    if not data.path:
        raise DataError(
            f'data.source="{data.source}" needs data.path; set it to a file, a folder or a glob'
        )
    path = Path(data.path).expanduser()
    if path.is_file():
        files, root = [path], path.parent
    elif path.is_dir():
        root = path
        files = files_below(path, pattern)
    elif glob.has_magic(str(path)):
        # The folder that the pattern begins in, so that names do not depend on where one stands.
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        root = Path(*fixed) if path.is_absolute() else Path.cwd()
        files = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    else:
        raise DataError(f"data.path={data.path} is not there; expected a file, a folder or a glob")
    if not files:
        raise DataError(f"data.path={data.path} matches no file; expected {pattern} below it")
    filled = [p for p in files if p.stat().st_size > 0]
    if not filled:
        what = "is an empty file" if len(files) == 1 else f"matches {len(files)} files, all empty"
        raise DataError(f"data.path={data.path} {what}; expected text in it")
    return sorted(filled), root


def read_text(path: Path) -> str:
    """Reads a UTF-8 file as it is, line ends included; only a byte-order mark is dropped.

    Raises:
      DataError: the file is not UTF-8; says where.
    """
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} (line "
            f"{line}); convert it (iconv -f ENCODING -t utf-8) or leave it out of data.path"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check data.path") from error


def files_below(folder: Path, pattern: str) -> list[Path]:
    """Files of that name under a folder; what is hidden is left out.

    Raises:
      DataError: a folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}); make it readable, or leave it "
            "out of data.path"
        ) from error

    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in fnmatch.filter(names, pattern)]
        found += [p for p in paths if not p.name.startswith(".") and p.is_file()]
    return found


def is_read(data: DataConfig, file: Path) -> bool:
    """Whether a source of files would read a file, if it stood there.

    Args:
      data: `source` and `path` are read.
      file: a path, relative ones from here.
    """
    pattern = _PATTERNS.get(data.source)
    if pattern is None or not data.path:
        return False
    path, file = Path(data.path).expanduser(), file.resolve()
    if path.is_dir():
        root = path.resolve()
        is_below = file.is_relative_to(root) and not _is_hidden(file, root)
        return is_below and fnmatch.fnmatchcase(file.name, pattern)
    if path.is_file() or not glob.has_magic(str(path)):
        return False
    if "**" in path.parts:  # any number of folders, also none
        return fnmatch.fnmatchcase(str(file), str(path.absolute()).replace("**/", "*"))
    return file.match(str(path.absolute()))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _cut_at_lines(text: str, size: int) -> list[str]:
    """Cuts a text at line ends into pieces of at least `size` characters, the last one excepted."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + size - 1)
        stop = len(text) if end < 0 else end + 1
        pieces.append(text[start:stop])
        start = stop
    return pieces


def _stat_key(files: Sequence[Path], root: Path) -> str:
    """A hash of names, sizes and times of change: reading it all again would take as long."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        name = os.path.relpath(path, root)
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "replace"))
    return digest.hexdigest()
