"""Arrow files with a column of text, mapped into memory: what `datasets` writes, and others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc

from llmasos_jax.data.columns import hint_of_fields
from llmasos_jax.errors import DataError


def read_arrow(files: Sequence[Path], field: str) -> pyarrow.ChunkedArray:
    """The text column of Arrow IPC files and streams, one after the other.

    Raises:
      DataError: a file is neither, or has no such column, or one that holds no text.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.arrow"
      >>> table = pyarrow.table({"text": ["one", "two"]})
      >>> with ipc.new_stream(path, table.schema) as stream:
      ...     stream.write_table(table)
      >>> read_arrow([path], "text")[1].as_py()
      'two'
    """
    chunks: list[pyarrow.Array] = []
    for path in files:
        table = _table(path)
        require_text(table.schema, field, str(path))
        chunks += table.column(field).cast(pyarrow.large_string()).chunks
    return pyarrow.chunked_array(chunks, type=pyarrow.large_string())


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
    source = pyarrow.memory_map(str(path))
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
