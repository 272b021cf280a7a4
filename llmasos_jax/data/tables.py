"""Tables with a column of text, through `datasets`: Arrow on disk, mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from llmasos_jax.data.arrow import require_text
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
        offset = 0
        with open(name, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield {field: text_of(line, field, f"{name}, line {number}", offset)}
                offset += len(line)


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
    return table[field]  # pyright: ignore[reportReturnType]
