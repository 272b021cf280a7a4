"""Lines (or records) that are JSON objects, with the text in one field."""

from __future__ import annotations

import json

from llmasos_jax.data.columns import hint_of_fields
from llmasos_jax.errors import DataError


def text_of(line: bytes, field: str, where: str, offset: int = 0) -> str:
    """The text of one JSON object.

    Args:
      line: the object, in UTF-8.
      field: its field with the text.
      where: what an error message calls the line.
      offset: of its first byte in the file.

    Raises:
      DataError: it is not UTF-8 or no JSON object, or the field is absent or no string.

    Example:
      >>> text_of(b'{"text": "one"}', "text", "a.jsonl, line 1")
      'one'
    """
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
        raise DataError(f'{where}: no field "{field}"{hint_of_fields(row, field)}')
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
