"""Sentencepiece's table of rewritten characters, checked before a program reads it.

`precompiled_charsmap` is the length in bytes of a double array (darts-clone), the array, and texts
that end in a zero byte. Who walks a damaged one leaves the array or cuts a character in two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmasos_jax.errors import TokenizerError

_LABEL = 0x800000FF  # a unit with the highest bit is a value, which no byte leads to


def check_charsmap(raw: bytes, where: Path) -> None:
    """Checks that no walk from any unit leaves the array or the texts.

    Args:
      raw: the table; b"" for none.
      where: the file, for messages.

    Raises:
      TokenizerError: it is damaged.
    """
    if raw and not _is_whole(raw):
        raise TokenizerError(
            f"{where} has a damaged table of rewritten characters (precompiled_charsmap, "
            f"{len(raw)} bytes); get the file again"
        )


def _is_whole(raw: bytes) -> bool:
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 or size % 4 or not 0 < size <= len(raw) - 4:
        return False
    texts = raw[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        return False
    units = np.frombuffer(raw, "<u4", count=size // 4, offset=4)
    places = np.flatnonzero((units & _LABEL) <= 0xFF)
    chosen = units[places]
    offsets = (chosen >> 10).astype(np.int64) << ((chosen & (1 << 9)) >> 6)
    bases = places ^ offsets
    # Any byte may come next.
    if not len(places) or places[0] != 0 or ((bases | 0xFF) >= len(units)).any():
        return False
    starts = (units[bases[(chosen >> 8) & 1 == 1]] & 0x7FFFFFFF).astype(np.int64)
    if (starts > len(texts)).any():
        return False
    heads = np.frombuffer(texts, np.uint8)[starts[starts < len(texts)]]
    return not ((heads & 0xC0) == 0x80).any()
