"""Which pieces of a vocabulary begin a word.

What a word is has to be said by the ids alone, as masking of whole words sees nothing else. In
WordPiece a piece goes on with a word if it begins with `##`. Everywhere else a space belongs to the
word behind it: a piece begins a word if its first character is white space, or a Chinese or
Japanese character (no space says where those words begin); all others go on with the word before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

_SPACE = "\u2581"  # what SentencePiece writes for a space
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What begins a text that looks like the piece of a byte; cut behind it, it does not match that.
BYTE_LIKE = r"<(?=0x[0-9A-Fa-f]{2}>)"
# Kana; ideographs with their extensions and compatibility forms.
_WORDS_ALONE = (
    *((0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),
    *((0xF900, 0xFAFF), (0x20000, 0x323AF)),
)


def begins_word(raw: bytes) -> bool:
    r"""Whether a piece of these bytes begins a word.

    Bytes that are only the beginning of a character count as one that is a word if most such
    characters are: 0xE3 to 0xE9 (kana and ideographs) and 0xF0 (rare ideographs, emoji).

    Example:
      >>> [begins_word(raw) for raw in (b" the", b"ing", b"\n", "月".encode(), b"\xe6", b"\x9c")]
      [True, False, True, True, True, False]
    """
    if not raw:
        return False
    first = raw[:4].decode("utf-8", errors="ignore")[:1]
    if raw[0] < 0x80:
        return first.isspace()
    if not first or not raw.startswith(first.encode()):
        return 0xE3 <= raw[0] <= 0xE9 or raw[0] == 0xF0
    return first.isspace() or any(low <= ord(first) <= high for low, high in _WORDS_ALONE)


def sentinels(pieces: Sequence[str | None]) -> tuple[int, ...]:
    """Places of `<extra_id_0>`, `<extra_id_1>`, ... among `pieces`, up to the first that is not.

    Example:
      >>> sentinels(["a", "<extra_id_1>", "<extra_id_0>", "<extra_id_3>"])
      (2, 1)
    """
    found = {piece: i for i, piece in enumerate(pieces) if piece and piece.startswith("<extra_id_")}
    places = []
    while (place := found.get(f"<extra_id_{len(places)}>")) is not None:
        places.append(place)
    return tuple(places)


def inside_pieces(pieces: Iterable[str]) -> np.ndarray:
    """Bool [V]: whether each piece, written as SentencePiece does, goes on with a word.

    Example:
      >>> inside_pieces(["▁the", "re", "<0x0A>", "月"]).tolist()
      [False, True, False, False]
    """
    return np.array([not begins_word(_bytes_of(piece)) for piece in pieces], dtype=bool)


def _bytes_of(piece: str) -> bytes:
    if found := _BYTE.fullmatch(piece):
        return bytes.fromhex(found[1])
    return piece.replace(_SPACE, " ").encode("utf-8", errors="replace")


def inside_byte_level(tokens: Iterable[str]) -> np.ndarray:
    """The same for byte-level BPE, where a printable character stands for each byte.

    Example:
      >>> inside_byte_level(["Ġthe", "re", "Ċ"]).tolist()
      [False, True, False]
    """
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    inside = []
    for token in tokens:
        known = [byte_of[c] for c in token if c in byte_of]
        inside.append(len(known) == len(token) and not begins_word(bytes(known)))
    return np.array(inside, dtype=bool)


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in GPT-2's vocabularies.

    Example:
      >>> byte_characters()[0x20], byte_characters()[0x41]
      ('Ġ', 'A')
    """
    shown_as_is = {*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown_as_is else next(others)) for byte in range(256)]
