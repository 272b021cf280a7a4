"""What an error message says of the fields that a table or a record has."""

from __future__ import annotations

from collections.abc import Iterable

from llmasos_jax.errors import did_you_mean


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
