"""Documents one after the other, with a place that JSON can keep."""

from __future__ import annotations

import codecs
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.columns import read_cell
from llmasos_jax.data.sources import files_below, matching_files
from llmasos_jax.data.streaming.inventory import sizes_of
from llmasos_jax.errors import ConfigError, DataError

_PARQUET_ROWS = 256  # read at a time


class DocumentStream(Protocol):
    """One epoch of documents, from any place on."""

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of each file that is read, by name; empty where that is not known."""
        ...

    def read(self, state: Any) -> Iterator[tuple[str, Any]]:
        """Gives each document with the state behind it, from which `read` goes on after it.

        Args:
          state: None is the beginning; else what came with a document, also after JSON.

        Raises:
          DataError: what comes cannot be read, or has no text.
        """
        ...


def open_stream(data: DataConfig) -> DocumentStream:
    r"""The documents of a config with `data.streaming`.

    Raises:
      ConfigError: the source is not one that streams.
      DataError: there is nothing at the path.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
      >>> _ = path.write_text('{"text": "one"}\n{"text": "two"}\n')
      >>> stream = open_stream(DataConfig(source="jsonl", path=str(path), streaming=True))
      >>> [(text, state)] = list(stream.read(None))[:1]
      >>> text, [text for text, _ in stream.read(state)]
      ('one', ['two'])
    """
    if data.source == "jsonl":
        return JsonLines(*matching_files(data, "*.jsonl"), data.text_field)
    if data.source == "parquet":
        return ParquetRows(*matching_files(data, "*.parquet"), data.text_field)
    if data.source == "huggingface":
        return NamedDataset(data)
    raise ConfigError(
        f'data.source="{data.source}" does not stream; "huggingface", "jsonl" and "parquet" do: '
        "take one of them, or leave out data.streaming"
    )


class JsonLines:
    """Lines of JSON objects; the state is a file, a byte in it and a line."""

    def __init__(self, files: Sequence[Path], root: Path, field: str) -> None:
        self._files, self._field = files, field
        self.files = sizes_of(files, root)

    def read(self, state: Any) -> Iterator[tuple[str, Any]]:
        """See `DocumentStream`."""
        from llmasos_jax.data.json_lines import text_of

        first, offset, number = state or (0, 0, 0)
        for index in range(first, len(self._files)):
            path = self._files[index]
            try:
                with open(path, "rb") as file:
                    file.seek(offset)
                    for line in file:
                        start, offset, number = offset, offset + len(line), number + 1
                        if start == 0:
                            line = line.removeprefix(codecs.BOM_UTF8)
                            start = offset - len(line)
                        if line.strip():
                            text = text_of(line, self._field, f"{path}, line {number}", start)
                            yield text, [index, offset, number]
            except OSError as error:
                raise DataError(
                    f"{path} cannot be read ({error.strerror}); check data.path"
                ) from error
            offset = number = 0


class ParquetRows:
    """Rows of Parquet files; the state is a file and a row in it."""

    def __init__(self, files: Sequence[Path], root: Path, field: str) -> None:
        self._files, self._field = files, field
        self.files = sizes_of(files, root)

    def read(self, state: Any) -> Iterator[tuple[str, Any]]:
        """See `DocumentStream`."""
        first, row = state or (0, 0)
        for index in range(first, len(self._files)):
            for text in self._rows(self._files[index], row):
                row += 1
                yield text, [index, row]
            row = 0

    def _rows(self, path: Path, row: int) -> Iterator[str]:
        import pyarrow
        from pyarrow import parquet

        from llmasos_jax.data.arrow import require_text

        try:
            with parquet.ParquetFile(path) as file:
                require_text(file.schema_arrow, self._field, str(path))
                number = 0
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if number + size <= row:
                        number += size
                        continue
                    batches = file.iter_batches(
                        _PARQUET_ROWS, row_groups=[group], columns=[self._field]
                    )
                    for batch in batches:
                        for text in _column(batch.column(0), path, number):
                            number += 1
                            if number > row:
                                yield _text(text, f"{path}, row {number - 1}")
        except (pyarrow.ArrowException, OSError) as error:
            line = " ".join(str(error).split())[:200]
            raise DataError(f"{path} cannot be read as Parquet ({line}); write it again") from error


class NamedDataset:
    """A dataset that `datasets` streams; the state is its own."""

    def __init__(self, data: DataConfig) -> None:
        from llmasos_jax.data.named_tables import open_named

        self._dataset: Any = open_named(data, streaming=True)
        self._field, self._name = data.text_field, f'dataset "{data.path}" ({data.split})'
        folder = Path(data.path or "").expanduser()
        # Of a name on the hub nothing is known.
        is_here = bool(data.path) and folder.is_dir()
        self.files = sizes_of(sorted(files_below(folder, "*")), folder) if is_here else {}

    def read(self, state: Any) -> Iterator[tuple[str, Any]]:
        """See `DocumentStream`."""
        from llmasos_jax.data.columns import hint_of_fields

        dataset = self._dataset  # which is read by one reader at a time
        number = 0 if state is None else state["number"]
        dataset.load_state_dict(None if state is None else copy.deepcopy(state["dataset"]))
        rows = iter(dataset)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # whatever a hub, a loader or a disk may raise
                line = " ".join(str(error).split())[:300]
                raise DataError(
                    f"{self._name} ended in an error after {number} documents: {line}; the last "
                    "checkpoint goes on from before it"
                ) from error
            if row is None:
                return
            where = f"{self._name}, document {number}"
            if self._field not in row:
                hint = hint_of_fields(row, self._field)
                raise DataError(f'{where} has no field "{self._field}"{hint}')
            number += 1
            text = _text(row[self._field], where)
            yield text, {"number": number, "dataset": dataset.state_dict()}


def _column(column: Any, path: Path, first: int) -> Sequence[object]:
    """The values of a batch of rows, of which the first is row `first`."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # which one, nobody says
        for number, cell in enumerate(column, start=first):
            read_cell(cell.as_py, f"{path}, row {number}")
        raise


def _text(text: object, where: str) -> str:
    if not isinstance(text, str):
        what = "null" if text is None else f"a {type(text).__name__}"
        raise DataError(f"{where} has {what} in the place of a text; take it out")
    return text
