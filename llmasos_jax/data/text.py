"""Text as bytes."""

from __future__ import annotations

from llmasos_jax.errors import TokenizerError


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
