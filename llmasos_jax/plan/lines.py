"""Lines for a terminal of 80 columns."""

from __future__ import annotations

import textwrap

WIDTH = 80


def wrapped(start: str, text: str, indent: int | None = None) -> str:
    """A text after a start, in as many lines as 80 columns ask for.

    Args:
      start: of the first line.
      text: broken at spaces; a word without one may stand out.
      indent: of the lines after the first; None for below the text.

    Example:
      >>> print(wrapped("fits  ", "yes: " + "so " * 30))
      fits  yes: so so so so so so so so so so so so so so so so so so so so so so so
            so so so so so so so
    """
    rest = " " * (len(start) if indent is None else indent)
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=rest, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in lines) if lines else start.rstrip()
