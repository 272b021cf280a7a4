"""Columns of text: which cell is read, and what an error message says of it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from llmasos_jax.errors import DataError, did_you_mean


def hint_of_fields(names: Iterable[str], field: str) -> str:
    """The names there are, and the nearest to `field`.

    Example:
      >>> hint_of_fields(["title", "texts"], "text")
      ' (there are: texts, title); did you mean "texts"?'
    """
    found = sorted(names)
    near = did_you_mean(field, found)
    hint = near if near.startswith("; did") else "; set data.text_field"
    return f" (there are: {', '.join(found) or 'none'}){hint}"


class FileRows:
    """Where rows stand that come from several files, one after the other.

    Args:
      files: in order.
      counts: rows of each.

    Example:
      >>> FileRows([Path("a.parquet"), Path("b.parquet")], [3, 2])(4)
      'b.parquet, row 1'
    """

    def __init__(self, files: Sequence[Path], counts: Sequence[int]) -> None:
        self._files, self._ends = files, list(itertools.accumulate(counts))

    def __call__(self, index: int) -> str:
        """A row of all, as messages name it; rows count from 0."""
        file = bisect.bisect_right(self._ends, index)
        return f"{self._files[file]}, row {index - (self._ends[file - 1] if file else 0)}"


def read_cell(read: Callable[[], object], where: str) -> str:
    """The text of one cell of a column of strings.

    Args:
      read: gives it.
      where: what an error message calls it.

    Raises:
      DataError: it is null, or not UTF-8.
    """
    try:
        text = read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start} of the "
            "text; write the text as UTF-8"
        ) from error
    if not isinstance(text, str):
        raise DataError(f"{where} has no text (null); take the row out, or write an empty string")
    return text
