"""How text becomes ids: one Protocol, three kinds, and anybody's own."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llmasos_jax.data.text import utf8
from llmasos_jax.data.tokenizers.words import begins_word


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into ids and back.

    Attributes:
      vocab_size: ids are 0 to vocab_size - 1.
      bos_id, eos_id: ids that begin and end a text; None where there is none.
      adds_bos: whether `encode` begins with `bos_id`.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, after `bos_id` if `adds_bos`; never adds `eos_id`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text, special ids left out; U+FFFD where bytes or ids make no character."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the tokenizer's files and returns its entry in `model.json`."""
        ...


@runtime_checkable
class BatchTokenizer(Tokenizer, Protocol):
    """A tokenizer with a faster way to encode many texts; the corpus uses it when it is there."""

    def encode_batch(self, texts: Sequence[str]) -> list[Any]:
        """Returns `[encode(text) for text in texts]`, as lists or as integer arrays."""
        ...


@runtime_checkable
class InputTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows by itself what stands around the texts that an encoder reads."""

    def encode_input(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """Returns the ids of a text, or of two, with their special ids; and each id's text."""
        ...


class ByteTokenizer:
    """The bytes of UTF-8 are the ids 0 to 255; then bos, eos, pad.

    Example:
      >>> tokenizer = ByteTokenizer()
      >>> tokenizer.encode("hé")
      [256, 104, 195, 169]
      >>> tokenizer.decode([256, 104, 195, 169, 257])
      'hé'
    """

    vocab_size: int = 259
    bos_id: int | None = 256
    eos_id: int | None = 257
    pad_id: int | None = 258
    adds_bos: bool = True

    def encode(self, text: str) -> list[int]:
        """Returns `bos_id` and the bytes of `text`."""
        return self._array(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, uint16."""
        return [self._array(text) for text in texts]

    @property
    def is_inside_v(self) -> np.ndarray:
        """Bool [259]: all but white space and the first byte of a Chinese character."""
        text = [not begins_word(bytes([byte])) for byte in range(256)]
        return np.array([*text, False, False, False])

    def _array(self, text: str) -> np.ndarray:
        raw = utf8(text)
        ids = np.empty(len(raw) + 1, dtype=np.uint16)
        ids[0] = 256
        ids[1:] = np.frombuffer(raw, dtype=np.uint8)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the bytes among `ids`; an id that is none gives U+FFFD."""
        raw = bytearray()
        for i in ids:
            if 0 <= i < 256:
                raw.append(i)
            elif not 256 <= i < self.vocab_size:
                raw += "\ufffd".encode()
        return raw.decode("utf-8", errors="replace")

    def save(self, folder: Path) -> dict[str, Any]:
        """Returns the entry; there is no file to write."""
        return {"kind": "bytes"}


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[Any]:
    """Returns the ids of each text, by the tokenizer's faster way if it has one.

    Example:
      >>> [ids.tolist() for ids in encode_batch(ByteTokenizer(), ["a", ""])]
      [[256, 97], [256]]
    """
    if isinstance(tokenizer, BatchTokenizer):
        return tokenizer.encode_batch(texts)
    return (tokenizer.encode(text) for text in texts)


def encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which special tokens stand, written out; none is added.

    A tokenizer without a method `encode_marked` has no special tokens that can be written: these
    are the ids of `encode`.

    Example:
      >>> encode_marked(ByteTokenizer(), "a")
      [256, 97]
    """
    encode: Any = getattr(tokenizer, "encode_marked", tokenizer.encode)
    return encode(text)


def encode_input(
    tokenizer: Tokenizer, text: str, pair: str | None = None
) -> tuple[list[int], list[int]]:
    """What an encoder reads of a text, or of two texts.

    A `tokenizer.json` with a template says itself what stands around them ([CLS] a [SEP] b [SEP]).
    Where there is none it is the ids of `encode` (so `bos_id` if the tokenizer adds one) and
    `eos_id` if there is one; the second text follows without `bos_id`, and again ends in `eos_id`.

    Returns:
      The ids, and as many token types: 0 for the first text, 1 for the second, or as the template
      says.

    Example:
      >>> encode_input(ByteTokenizer(), "a", "b")
      ([256, 97, 257, 98, 257], [0, 0, 0, 1, 1])
    """
    if isinstance(tokenizer, InputTokenizer):
        return tokenizer.encode_input(text, pair)
    return plain_input(tokenizer, text, pair)


def plain_input(
    tokenizer: Tokenizer, text: str, pair: str | None = None
) -> tuple[list[int], list[int]]:
    """`encode_input` for a tokenizer without a template."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    first, second = [*tokenizer.encode(text), *end], []
    if pair is not None:
        second = [*tokenizer.encode(pair)[1 if tokenizer.adds_bos else 0 :], *end]
    return first + second, [0] * len(first) + [1] * len(second)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Returns a hash of all that the tokenizer saves; equal tokenizers have equal ones.

    Example:
      >>> fingerprint(ByteTokenizer()) == fingerprint(ByteTokenizer())
      True
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = hashlib.sha256(repr(sorted(tokenizer.save(folder).items())).encode())
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
