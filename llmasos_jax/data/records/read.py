"""Records of JSON Lines and Parquet files, each with the place it came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.sources import matching_files
from llmasos_jax.data.text import shown
from llmasos_jax.errors import ConfigError, DataError

# Keys that say what a record is, not what is learned from it; every other one has to be read.
METADATA = ("id", "idx", "index", "source", "dataset", "category", "language", "meta", "metadata")

_GZIP = b"\x1f\x8b"  # how a file of gzip begins


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
      values: its fields, without those of `METADATA` (of which `data.text_field` may name one).
      where: "FILE:LINE", for messages; of Parquet the row, from 1; of a function its name and the
        number of the record, from 1.
    """

    values: Mapping[str, Any]
    where: str


def read_records(data: DataConfig) -> list[Record]:
    """Reads the records that a config names, the first `data.max_documents` of them if it is set.

    Args:
      data: `source` is "jsonl", "parquet", or `"package.module:name"` of a function from a
        DataConfig to a sequence of dicts; `path` a file, a folder or a glob.

    Raises:
      ConfigError: the source holds text, not records, or is not known.
      DataError: nothing at the path, or a line that is no JSON object; says which.
    """
    if data.source in ("stdlib", "text"):
        raise ConfigError(
            f'data.source="{data.source}" is text, and this objective learns from records; set '
            'data.source="jsonl" or "parquet", and data.path'
        )
    read = resolve(data.source, _SOURCES, "data.source")
    found = read(data) if data.source in _SOURCES else _given(read, data)
    records = []
    for record in found:
        if data.max_documents is not None and len(records) == data.max_documents:
            break
        left = {*METADATA} - {data.text_field}
        kept = {key: value for key, value in record.values.items() if key not in left}
        records.append(Record(kept, record.where))
    if not records:
        raise DataError(f"{data.path or data.source} has no record; expected at least one")
    return records


def heldout_records(data: DataConfig) -> list[Record] | None:
    """The records of `data.heldout_path`; None where a share of the others is held out."""
    if data.heldout_path is None:
        return None
    return read_records(dataclasses.replace(data, path=data.heldout_path, max_documents=None))


def _jsonl(data: DataConfig) -> Iterator[Record]:
    for path in matching_files(data, "*.jsonl")[0]:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if raw.strip():
                    yield Record(_parsed(raw, where), where)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8"), object_pairs_hook=partial(_unique, where))
    except UnicodeDecodeError as error:
        if line.startswith(_GZIP):
            raise DataError(f"{where}: the file is compressed; gunzip it") from error
        raise DataError(
            f"{where}: not UTF-8: byte 0x{line[error.start]:02x}; convert the file (iconv -f "
            "ENCODING -t utf-8)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not JSON ({shown(str(error))}); write one object per line, as json.dumps "
            "does"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: a JSON {type(found).__name__}; expected one object per line")
    return found


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise DataError(f'{where}: the key "{shown(twice)}" stands twice; take one out')
    return found


def _parquet(data: DataConfig) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    for path in matching_files(data, "*.parquet")[0]:
        number = 0
        try:
            for batch in parquet.ParquetFile(path).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield Record(_present(row), f"{path}:{number}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read as Parquet after row {number} ({shown(str(error))}); "
                "write it again"
            ) from error


def _present(value: Any) -> Any:
    """A row without its nulls: in a table every row has every column, and null says absent."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _given(read: Callable[[DataConfig], Any], data: DataConfig) -> Iterator[Record]:
    found = read(data)
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise DataError(
            f'data.source="{data.source}" gave a {type(found).__name__}; expected a sequence of '
            "dicts (a list)"
        )
    for number, values in enumerate(found, start=1):
        where = f"{data.source}:{number}"
        if not isinstance(values, Mapping):
            raise DataError(f"{where}: a {type(values).__name__}; expected a dict")
        yield Record(dict(values), where)


_SOURCES: dict[str, Callable[[DataConfig], Iterator[Record]]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
}


def canonical(record: Record) -> str:
    """A record as one text, equal for equal records: what its side of the split depends on.

    Half of a surrogate pair, which UTF-8 cannot write, is spelt out: who reads the field refuses it
    with its line.

    Example:
      >>> canonical(Record({"b": "é", "a": 1}, "x:1"))
      '{"a": 1, "b": "é"}'
    """
    text = json.dumps(dict(record.values), ensure_ascii=False, sort_keys=True, default=str)
    return text.encode("utf-8", "backslashreplace").decode()
