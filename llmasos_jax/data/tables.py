"""Tables with a column of text, through `datasets`: Arrow on disk, mapped into memory."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from llmasos_jax.errors import DataError, did_you_mean


def read_jsonl(files: Sequence[Path], field: str, cache: Path, key: str) -> Sequence[str]:
    """Returns the text column of JSON Lines files.

    Each line is parsed here: the JSON reader of `datasets` would turn a text that looks like a date
    into another text.

    Args:
      files: the files, in order.
      field: name of the field with the text.
      cache: folder for the Arrow table.
      key: hash of the files.

    Raises:
      DataError: a line is not UTF-8 or no JSON object, or its field is absent or no string.
    """
    features = datasets.Features({field: datasets.Value("large_string")})
    with _quiet():
        try:
            table = datasets.Dataset.from_generator(
                _rows,
                features=features,
                cache_dir=str(cache),
                # Tuples: `datasets` would take lists for shards. The key is for its cache alone.
                gen_kwargs={"files": tuple(map(str, files)), "field": field, "key": key},
            )
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, DataError):
                raise error.__cause__ from None
            raise DataError(
                f"{files[0].parent}: {error.__cause__ or error}; check data.path"
            ) from error
        except ValueError as error:  # what an empty table gives
            raise DataError(
                f"{', '.join(map(str, files[:3]))}: no line with JSON in it; expected one object "
                "per line"
            ) from error
    return table[field]  # pyright: ignore[reportReturnType]


def _rows(files: Sequence[str], field: str, key: str) -> Iterator[dict[str, str]]:
    for name in files:
        offset = 0
        with open(name, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield {field: _text_of(line, field, f"{name}, line {number}", offset)}
                offset += len(line)


def _text_of(line: bytes, field: str, where: str, offset: int) -> str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8: byte 0x{line[error.start]:02x} at offset {offset + error.start} "
            "of the file; convert the file (iconv -f ENCODING -t utf-8)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); expected one object per line") from error
    if not isinstance(row, dict):
        raise DataError(
            f'{where}: a JSON {type(row).__name__}; expected an object with a field "{field}"'
        )
    if field not in row:
        raise DataError(f'{where}: no field "{field}"{_fields(row, field)}')
    text = row[field]
    if not isinstance(text, str):
        raise DataError(f'{where}: field "{field}" is a {type(text).__name__}; expected a string')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{where}: field "{field}" holds half of a surrogate pair at character {error.start}; '
            "take it out"
        ) from error
    return text


def read_parquet(files: Sequence[Path], field: str, cache: Path) -> Sequence[str | None]:
    """Returns the text column of Parquet files.

    Raises:
      DataError: a file is no Parquet file, or has no such column, or one that holds no text.
    """
    import pyarrow
    from pyarrow import parquet

    for path in files:
        try:
            schema = parquet.read_schema(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is not a Parquet file ({error}); check data.path") from error
        if field not in schema.names:
            raise DataError(
                f'{path}: no column "{field}"{_fields(dict.fromkeys(schema.names), field)}'
            )
        kind = schema.field(field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise DataError(
                f'{path}: column "{field}" holds {kind}; expected strings: name another one'
            )
    with _quiet():
        try:
            table = datasets.Dataset.from_parquet(
                [str(p) for p in files], columns=[field], cache_dir=str(cache)
            )
        except Exception as error:  # whatever Arrow and datasets raise for damaged pages
            raise DataError(
                f"{files[0].parent}: Parquet files cannot be read ({error.__cause__ or error}); "
                "write them again"
            ) from error
    return table[field]  # pyright: ignore[reportReturnType]


def _fields(row: dict[str, Any], field: str) -> str:
    names = ", ".join(sorted(row)) or "none"
    near = did_you_mean(field, row)
    hint = near if near.startswith("; did") else ""
    return f" (there are: {names}){hint or '; set data.text_field'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no second copy of an error while `datasets` works; both as before afterwards."""
    logger = logging.getLogger("datasets")
    level, had_bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not had_bars:
            datasets.enable_progress_bars()
