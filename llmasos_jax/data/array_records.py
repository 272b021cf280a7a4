"""ArrayRecord files: any record is found by its number, without a table in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.data.json_lines import text_of
from llmasos_jax.errors import DataError


class RecordTexts:
    """The text of each record of some files, one file after the other.

    Args:
      files: in order.
      field: the field of a JSON object that holds the text; None where a record is the text itself.

    Raises:
      DataError: a file is no ArrayRecord file; when read, a record is not UTF-8, no JSON object, or
        its field is absent or no string.
    """

    def __init__(self, files: Sequence[Path], field: str | None) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._field = field
        self._sources: list[Any] = []
        for path in files:
            try:
                self._sources.append(ArrayRecordDataSource([str(path)]))
                len(self._sources[-1])
            except Exception as error:  # array_record raises plain RuntimeErrors
                line = " ".join(str(error).split())[:200]
                raise DataError(
                    f"{path} is not an ArrayRecord file ({line}); check data.path"
                ) from error
        self._files = files
        self._counts = [len(source) for source in self._sources]

    def __len__(self) -> int:
        return sum(self._counts)

    def __getitem__(self, index: int) -> str:
        file, number = 0, index
        while number >= self._counts[file]:
            number -= self._counts[file]
            file += 1
        where = f"{self._files[file]}, record {number}"
        record = _raised(lambda: self._sources[file][number], where)
        if self._field is not None:
            return text_of(record, self._field, where)
        try:
            return record.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8: byte 0x{record[error.start]:02x} at {error.start}; write the "
                "text as UTF-8"
            ) from error


def _raised(read: Callable[[], bytes], where: str) -> bytes:
    try:
        return read()
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"{where} cannot be read ({line}); write the file again") from error
