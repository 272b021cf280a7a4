"""The bytes that each id adds to a text, exactly.

A grammar is followed byte by byte, so it must be known which bytes an id stands for: also of an id
that is half a character, and of one that begins with a space, which decoding alone drops. What the
tokenizer's own `decode` gives inside a text is taken as the truth; the text of the id only says
which bytes are behind a U+FFFD. Then sequences are decoded, and must be the bytes of their ids one
after the other: a tokenizer of which that is not true is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.data.tokenizers.words import byte_characters
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.stream import BROKEN, Decoder

if TYPE_CHECKING:
    from llmasos_jax.data.tokenizers.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}
# Characters of one to four bytes, which no vocabulary has all as a token of their own.
_SAMPLE = 'a {"é": [1.5, "ǅ月\t𝔸"],\n  "\u2028~\U0010fffd": -2} 한국어'
_NUM_SEQUENCES, _SEQUENCE_LEN = 64, 12


@dataclass(frozen=True)
class TokenBytes:
    """What the ids of a tokenizer add to a text.

    Attributes:
      decoder: of the tokenizer.
      of_id: the bytes of each id; empty where an id is no text (special tokens, gaps).
      keeps_start_v: bool [V], whether an id gives the same at the very beginning of a text, where
        some tokenizers drop a space.
    """

    decoder: Decoder
    of_id: tuple[bytes, ...]
    keeps_start_v: np.ndarray

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        return {raw: i for i, raw in reversed(tuple(enumerate(self.of_id))) if raw}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._id_of), default=0)

    def ids(self, text: str) -> list[int] | None:
        """Ids whose bytes are exactly those of `text`, inside a text; None if there are none.

        As the tokenizer cuts it, if that is exact, else the longest token first.
        """
        tokenizer, anchor = self.decoder.tokenizer, self.decoder.anchor
        raw = text.encode("utf-8")
        behind = tokenizer.encode("a" + text)
        first = 1 if tokenizer.adds_bos and tokenizer.bos_id is not None else 0
        if behind[: len(anchor)] == anchor and self._join(behind[len(anchor) :]) == raw:
            return behind[len(anchor) :]
        if self._join(alone := tokenizer.encode(text)[first:]) == raw:
            return alone
        return self._greedy(raw)

    def _join(self, ids: Sequence[int]) -> bytes | None:
        parts = [self.of_id[i] if i < len(self.of_id) else b"" for i in ids]
        return b"".join(parts) if all(parts) else None

    def _greedy(self, raw: bytes) -> list[int] | None:
        ids, start = [], 0
        while start < len(raw):
            ends = range(min(len(raw), start + self._longest), start, -1)
            stop = next((end for end in ends if raw[start:end] in self._id_of), None)
            if stop is None:
                return None
            ids.append(self._id_of[raw[start:stop]])
            start = stop
        return ids


def token_bytes(tokenizer: Tokenizer, num_ids: int, eos_ids: Sequence[int] = ()) -> TokenBytes:
    r"""Works out the bytes of the ids 0 to `num_ids` - 1.

    Args:
      tokenizer: any; one that has ids that are parts of characters needs a method `token(id)`, as
        all tokenizers of the package have.
      num_ids: at most `tokenizer.vocab_size`.
      eos_ids: those that end a text, beside the tokenizer's own; they are no text.

    Raises:
      GenerationError: the bytes of an id are not known, or what it adds to a text depends on what
        stands before it.

    Example:
      >>> found = token_bytes(ByteTokenizer(), 259)
      >>> found.of_id[0xC3], found.of_id[257], found.ids("é")
      (b'\xc3', b'', [195, 169])
    """
    decoder = Decoder(tokenizer)
    special = {*vocabulary_of(tokenizer, tokenizer.vocab_size).special_ids, *eos_ids}
    texts = ["" if i in special else decoder.behind_anchor([i]) for i in range(num_ids)]
    found = tuple(_bytes_of(tokenizer, i, text) for i, text in enumerate(texts))
    keeps_start_v = np.array(
        [bool(text) and tokenizer.decode([i]) == text for i, text in enumerate(texts)], bool
    )
    _check(decoder, found)
    return TokenBytes(decoder, found, keeps_start_v)


def _bytes_of(tokenizer: Tokenizer, number: int, text: str) -> bytes:
    if BROKEN not in text:
        return text.encode("utf-8")
    for raw in _candidates(tokenizer, number):
        if raw.decode("utf-8", errors="replace") == text:
            return raw
    raise GenerationError(
        f"constrained output needs the bytes of each token, and those of id {number} "
        f"({text[:20]!r}) are not known for a {type(tokenizer).__name__}; use another tokenizer"
    )


def _candidates(tokenizer: Tokenizer, number: int) -> list[bytes]:
    """What the bytes of an id could be, whose text is not all characters."""
    if isinstance(tokenizer, ByteTokenizer):
        return [bytes([number])]
    token: Any = getattr(tokenizer, "token", lambda _: None)(number)
    if not isinstance(token, str):
        return []
    found = [bytes(_BYTE_OF[c] for c in token)] if all(c in _BYTE_OF for c in token) else []
    if byte := _BYTE.fullmatch(token):
        found.append(bytes.fromhex(byte[1]))
    # U+FFFD itself.
    return [*found, token.encode(), token.replace("\u2581", " ").encode()]


def _check(decoder: Decoder, found: Sequence[bytes]) -> None:
    whole = [i for i, raw in enumerate(found) if raw and _is_text(raw)]
    if not whole:
        raise GenerationError(
            "constrained output needs tokens that are text, and the tokenizer has none; use another"
        )
    generator = np.random.default_rng(0)
    drawn = generator.choice(np.array(whole), (_NUM_SEQUENCES, _SEQUENCE_LEN)).tolist()
    # Some decoders drop a token that repeats the one before.
    twice = [[i, i, *ids, ids[-1]] for i, ids in zip(generator.choice(whole, 8), drawn)]  # noqa: B905
    bos = {decoder.tokenizer.bos_id}
    sample = [i for i in decoder.tokenizer.encode(_SAMPLE) if i not in bos and i < len(found)]
    for ids in (*drawn, *twice, [i for i in sample if found[i]]):
        ids = [int(i) for i in ids]
        read, said = decoder.behind_anchor(ids), b"".join(found[i] for i in ids)
        if read.encode("utf-8") != said:
            raise GenerationError(
                "constrained output needs tokens whose text does not depend on those before, and "
                f"the tokenizer reads the ids {ids[:12]} as {read[:40]!r}, not "
                f"{said.decode('utf-8', errors='replace')[:40]!r}; use another tokenizer"
            )


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
