"""Arrow files with a column of text, mapped into memory: what `datasets` writes, and others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc

from llmasos_jax.data.columns import FileRows, hint_of_fields
from llmasos_jax.errors import DataError


def read_arrow(files: Sequence[Path], field: str) -> tuple[pyarrow.ChunkedArray, FileRows]:
    """The text column of Arrow IPC files and streams, one after the other.

    Returns:
      The column, and where each of its rows stands.

    Raises:
      DataError: a file is neither, or has no such column, or one that holds no text.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.arrow"
      >>> table = pyarrow.table({"text": ["one", "two"]})
      >>> with ipc.new_stream(path, table.schema) as stream:
      ...     stream.write_table(table)
      >>> column, where = read_arrow([path], "text")
      >>> column[1].as_py(), where(1).endswith("a.arrow, row 1")
      ('two', True)
    """
    chunks: list[pyarrow.Array] = []
    counts: list[int] = []
    for path in files:
        table = _table(path)
        require_text(table.schema, field, str(path))
        chunks += table.column(field).cast(pyarrow.large_string()).chunks
        counts.append(table.num_rows)
    return pyarrow.chunked_array(chunks, type=pyarrow.large_string()), FileRows(files, counts)


def require_text(schema: pyarrow.Schema, field: str, where: str) -> None:
    """Refuses a table without that column, or with one that holds no strings.

    Raises:
      DataError: it is not there, or of another type.
    """
    if field not in schema.names:
        raise DataError(f'{where}: no column "{field}"{hint_of_fields(schema.names, field)}')
    kind = schema.field(field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(
            f'{where}: column "{field}" holds {kind}; expected strings: name another one'
        )


def _table(path: Path) -> Any:
    try:
        source = pyarrow.memory_map(str(path))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({os.strerror(error.errno or 0)}); check data.path"
        ) from error
    try:
        return ipc.open_file(source).read_all()
    except pyarrow.ArrowInvalid:  # no footer: a stream
        source.seek(0)
    try:
        return ipc.open_stream(source).read_all()
    except (pyarrow.ArrowInvalid, OSError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{path} is not an Arrow file or stream ({line}); check data.path") from (
            error
        )
