"""Tables with a column of text, through `datasets`: Arrow on disk, mapped into memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from llmasos_jax.data.arrow import require_text
from llmasos_jax.data.columns import FileRows
from llmasos_jax.data.json_lines import text_of
from llmasos_jax.data.quiet import quiet
from llmasos_jax.errors import DataError


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
    with quiet():
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
        end = 0
        try:
            with open(name, "rb") as file:
                for number, line in enumerate(file, start=1):
                    end += len(line)
                    if number == 1:
                        line = line.removeprefix(codecs.BOM_UTF8)
                    if line.strip():
                        where, start = f"{name}, line {number}", end - len(line)
                        yield {field: text_of(line, field, where, start)}
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error.strerror}); check data.path") from error


def read_parquet(
    files: Sequence[Path], field: str, cache: Path
) -> tuple[Sequence[str | None], FileRows]:
    """Returns the text column of Parquet files, and where each of its rows stands.

    Raises:
      DataError: a file is no Parquet file, or has no such column, or one that holds no text.
    """
    import pyarrow
    from pyarrow import parquet

    counts: list[int] = []
    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
                counts.append(file.metadata.num_rows)
        except PermissionError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); check data.path") from error
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is not a Parquet file ({error}); check data.path") from error
        require_text(schema, field, str(path))
    with quiet():
        try:
            table = datasets.Dataset.from_parquet(
                [str(p) for p in files], columns=[field], cache_dir=str(cache)
            )
        except Exception as error:  # whatever Arrow and datasets raise for damaged pages
            raise DataError(
                f"{files[0].parent}: Parquet files cannot be read ({error.__cause__ or error}); "
                "write them again"
            ) from error
    column: Any = table[field]
    return column, FileRows(files, counts)
