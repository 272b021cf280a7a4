"""Text as bytes, and values as messages show them."""

from __future__ import annotations

from typing import Any

from llmasos_jax.errors import TokenizerError

_SHOWN = 60  # characters of a value that an error message shows


def utf8(text: str) -> bytes:
    r"""Returns the UTF-8 bytes of a text.

    Raises:
      TokenizerError: the text holds half of a surrogate pair, which UTF-8 cannot write.

    Example:
      >>> utf8("é")
      b'\xc3\xa9'
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is U+{ord(text[error.start]):04X}, half of a "
            "surrogate pair; "
            'expected text that UTF-8 can write: repair it with text.encode("utf-16", '
            '"surrogatepass").decode("utf-16", "replace")'
        ) from error


def shown(value: Any, most: int = _SHOWN) -> str:
    r"""A value as a message shows it: one line, cut after `most` characters.

    Example:
      >>> shown("a\nb"), shown([1, 2])
      ('a?b', '[1, 2]')
    """
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return f"a number of about 2^{value.bit_length()}"
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else text[:most] + "..."
