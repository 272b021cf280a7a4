"""Hugging Face `tokenizer.json` files, through the `tokenizers` library."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from llmasos_jax.data.text import utf8
from llmasos_jax.data.tokenizers.tokenizer import plain_input
from llmasos_jax.data.tokenizers.words import inside_byte_level, inside_pieces, sentinels
from llmasos_jax.errors import TokenizerError

FILE = "tokenizer.json"
# Looked for, in this order, only where no file says which tokens begin and end a text.
BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]")
EOS_NAMES = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "[SEP]")
MASK_NAMES, PAD_NAMES = ("[MASK]", "<mask>"), ("[PAD]", "<pad>")


class HuggingFaceTokenizer:
    """A `tokenizer.json`.

    Args:
      text: content of the file.
      bos_id, eos_id: ids that begin and end a text.
      adds_bos: whether `encode` begins with `bos_id`.
      mask_id, pad_id: ids of a masked token and of padding; None where there is none.
      parsed: the file as the library reads it, if that is done already; it takes a while.
    """

    def __init__(
        self,
        text: str,
        *,
        bos_id: int | None,
        eos_id: int | None,
        adds_bos: bool,
        mask_id: int | None = None,
        pad_id: int | None = None,
        parsed: tokenizers.Tokenizer | None = None,
    ) -> None:
        self._text = text
        self._tokenizer = tokenizers.Tokenizer.from_str(text) if parsed is None else parsed
        # Cut or padded texts would be lost or added tokens; the pipeline does both by itself.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        # Not get_vocab_size: ids may have gaps, and an id has to fit into the embedding table.
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.bos_id, self.eos_id, self.adds_bos = bos_id, eos_id, adds_bos
        self.mask_id, self.pad_id = mask_id, pad_id

    @classmethod
    def from_file(cls, path: Path, entry: Mapping[str, Any] | None = None) -> HuggingFaceTokenizer:
        """Reads a `tokenizer.json`.

        What `entry` does not say of the ids and `adds_bos` is taken from a `tokenizer_config.json`
        beside the file, else from the names of the special tokens.

        Raises:
          TokenizerError: the file is no `tokenizer.json`, or an id of `entry` is not in it.
        """
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read ({error}); check it") from error
        text, tokenizer = parse(raw, path)
        named = _names_beside(path)
        bos_id = _find_id(tokenizer, entry, "bos_id", named.get("bos_token"), BOS_NAMES)
        eos_id = _find_id(tokenizer, entry, "eos_id", named.get("eos_token"), EOS_NAMES)
        mask_id = _find_id(tokenizer, entry, "mask_id", named.get("mask_token"), MASK_NAMES)
        pad_id = _find_id(tokenizer, entry, "pad_id", named.get("pad_token"), PAD_NAMES)
        if entry is not None and "adds_bos" in entry:
            adds_bos = bool(entry["adds_bos"])
        elif (begins := first_special_id(tokenizer)) is not None and bos_id in (None, begins):
            bos_id, adds_bos = begins, True
        else:
            adds_bos = bool(named.get("add_bos_token", False)) and bos_id is not None
        return cls(
            text,
            bos_id=bos_id,
            eos_id=eos_id,
            adds_bos=adds_bos,
            mask_id=mask_id,
            pad_id=pad_id,
            parsed=tokenizer,
        )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, after `bos_id` if `adds_bos`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, made on all cores."""
        for text in texts:
            if not text.isascii():
                utf8(text)
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise _cannot_encode(error) from error
        prefix = [self.bos_id] if self.adds_bos and self.bos_id is not None else []
        return [prefix + self._checked(e.ids) for e in encoded]

    def encode_input(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """Returns what an encoder reads of a text or of two, and each id's token type.

        By the file's own template ([CLS] a [SEP] b [SEP]); see `data.tokenizer.encode_input` for
        files without one.
        """
        if not self._tokenizer.num_special_tokens_to_add(pair is not None):
            return plain_input(self, text, pair)
        for part in (text, pair or ""):
            utf8(part)
        try:
            encoded = self._tokenizer.encode(text, pair, add_special_tokens=True)
        except Exception as error:  # the library raises bare Exception
            raise _cannot_encode(error) from error
        return self._checked(encoded.ids), encoded.type_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text; ids that the tokenizer does not have give U+FFFD."""
        text, known = "", []
        for i in ids:
            i = int(i)
            if 0 <= i < self.vocab_size and self._tokenizer.id_to_token(i) is not None:
                known.append(i)
                continue
            text += self._tokenizer.decode(known, skip_special_tokens=True) + "\ufffd"
            known = []
        return text + self._tokenizer.decode(known, skip_special_tokens=True)

    def token(self, number: int) -> str | None:
        """The text of an id, a special one's too; None if there is no such id."""
        return self._tokenizer.id_to_token(number)

    @cached_property
    def cls_id(self) -> int | None:
        """Id that the template puts in front of a text; `bos_id` where there is none."""
        ends = self._template_ends
        return self.bos_id if ends is None else ends[0]

    @cached_property
    def sep_id(self) -> int | None:
        """Id that the template puts behind a text; `eos_id` where there is none."""
        ends = self._template_ends
        return self.eos_id if ends is None else ends[1]

    @cached_property
    def _template_ends(self) -> tuple[int | None, int | None] | None:
        if not self._tokenizer.num_special_tokens_to_add(False):
            return None
        try:
            encoded = self._tokenizer.encode("a", add_special_tokens=True)
        except Exception as error:  # the library raises bare Exception
            raise _cannot_encode(error) from error
        ids, mask = encoded.ids, encoded.special_tokens_mask
        first, last = (
            ids[place] if mask and mask[place] and ids[place] < self.vocab_size else None
            for place in (0, -1)
        )
        return first, last

    @cached_property
    def unk_id(self) -> int | None:
        """Id of what has no pieces; None if there is none."""
        model = self._json["model"]
        if isinstance(found := model.get("unk_id"), int):
            return found
        name = model.get("unk_token")
        return self._tokenizer.token_to_id(name) if isinstance(name, str) else None

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of <extra_id_0>, <extra_id_1>, ..., in this order."""
        return sentinels([self.token(i) for i in range(self.vocab_size)])

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are no text: special tokens, unknown, sentinels, and ids without a token."""
        added = self._tokenizer.get_added_tokens_decoder()
        named = (self.bos_id, self.eos_id, self.cls_id, self.sep_id, self.mask_id, self.pad_id)
        found = {
            *(i for i in (*named, self.unk_id) if i is not None),
            *(i for i, token in added.items() if token.special),
            *(i for i in range(self.vocab_size) if self.token(i) is None),
            *self.sentinel_ids,
        }
        return tuple(sorted(i for i in found if i < self.vocab_size))

    @cached_property
    def is_inside_v(self) -> np.ndarray:
        """Bool [V]: whether an id goes on with the word before it (see `data.words`)."""
        tokens = [self.token(i) or "" for i in range(self.vocab_size)]
        model = self._json["model"]
        prefix = model.get("continuing_subword_prefix")
        if prefix:
            return np.array([token.startswith(prefix) for token in tokens])
        if model.get("type") not in ("BPE", "Unigram") or model.get("end_of_word_suffix"):
            return np.zeros(len(tokens), dtype=bool)  # no id says whether it goes on with a word
        if "ByteLevel" in json.dumps([self._json.get(k) for k in ("pre_tokenizer", "decoder")]):
            return inside_byte_level(tokens)
        return inside_pieces(tokens)

    @cached_property
    def _json(self) -> dict[str, Any]:
        return json.loads(self._text)

    def tokens_from(self, first: int) -> dict[int, str] | None:
        """The added tokens whose ids are `first` or above; None if others are there too."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        found = {i: token for token, i in vocabulary.items() if i >= first}
        return dict(sorted(found.items())) if found.keys() <= added.keys() else None

    def within(self, num_ids: int) -> HuggingFaceTokenizer:
        """This tokenizer for a model of `num_ids` ids: a text that gives another one is refused.

        `save` writes all tokens still.
        """
        other = copy.copy(self)
        other.vocab_size = min(num_ids, self.vocab_size)
        of_size = ("sentinel_ids", "special_ids", "is_inside_v", "_template_ends")
        for name in ("unk_id", "cls_id", "sep_id", *of_size):
            other.__dict__.pop(name, None)
        for name in ("bos_id", "eos_id", "mask_id", "pad_id"):
            number = getattr(self, name)
            if number is not None and number >= num_ids:
                setattr(other, name, None)
        return other

    def _checked(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.vocab_size:
            first = next(i for i in ids if i >= self.vocab_size)
            raise TokenizerError(
                f"the text has the token {self.token(first)!r}, id {first}, and the model's ids "
                f"are 0 to {self.vocab_size - 1}; take it out of the text"
            )
        return ids

    def encode_marked(self, text: str) -> list[int]:
        """Returns the ids of a text in which special tokens stand, written out; adds none."""
        utf8(text)
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:
            raise _cannot_encode(error) from error
        return self._checked(ids)

    def encode_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Returns the ids of `encode_marked` of each text, and the characters each stands for."""
        for text in texts:
            utf8(text)
        try:
            encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise _cannot_encode(error) from error
        return [(self._checked(e.ids), e.offsets) for e in encoded]

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes `tokenizer.json`."""
        (folder / FILE).write_text(self._text, encoding="utf-8")
        return {
            "kind": "tokenizers",
            "file": FILE,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "adds_bos": self.adds_bos,
            "mask_id": self.mask_id,
            "pad_id": self.pad_id,
        }


def parse(raw: bytes, where: Path) -> tuple[str, tokenizers.Tokenizer]:
    """The text of a `tokenizer.json`, and the tokenizer that it is.

    Args:
      raw: the file's bytes.
      where: the file, for messages.

    Raises:
      TokenizerError: it is none, or has no tokens.
    """
    try:
        text = raw.decode("utf-8")
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{where} is not a tokenizer.json ({error}); expected one of the Hugging Face "
            "tokenizers library"
        ) from error
    if not tokenizer.get_vocab(with_added_tokens=True):
        raise TokenizerError(f"{where} has no tokens; expected a trained tokenizer.json")
    return text, tokenizer


def _names_beside(path: Path) -> dict[str, Any]:
    """What a `tokenizer_config.json` in the same folder says; nothing if there is none."""
    beside = path.with_name("tokenizer_config.json")
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(
            f"{beside} is not JSON ({error}); repair it or take it away"
        ) from error
    return found if isinstance(found, dict) else {}


def _find_id(
    tokenizer: tokenizers.Tokenizer,
    entry: Mapping[str, Any] | None,
    key: str,
    named: Any,
    usual: Sequence[str],
) -> int | None:
    """An id from the entry, else from a token's name, else from the usual names."""
    if entry is not None and key in entry:
        found = entry[key]
        if found is None:
            return None
        if not isinstance(found, int) or tokenizer.id_to_token(found) is None:
            raise TokenizerError(
                f"tokenizer.{key}={found!r} is not an id of this tokenizer; correct it"
            )
        return found
    if isinstance(named, dict):  # an AddedToken written out
        named = named.get("content")
    if isinstance(named, str):
        return tokenizer.token_to_id(named)
    return usual_id(tokenizer, usual)


def usual_id(tokenizer: tokenizers.Tokenizer, names: Sequence[str]) -> int | None:
    """The id of the first of these names that is a special token; None if none is."""
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    return next((tokenizer.token_to_id(n) for n in names if n in special), None)


def first_special_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The special id that the tokenizer's own template puts first, if there is one.

    Raises:
      TokenizerError: the tokenizer cannot encode a text, or puts several special ids in front.
    """
    try:
        encoded = tokenizer.encode("a", add_special_tokens=True)
    except Exception as error:  # the library raises bare Exception
        raise _cannot_encode(error) from error
    mask = encoded.special_tokens_mask
    if not mask or mask[0] != 1:
        return None
    # Where the text itself gave no id, what stands behind the first id may as well be the end.
    num_first = mask.index(0) if 0 in mask else 1
    if num_first > 1:
        raise TokenizerError(
            f"the template of the tokenizer.json begins a text with {num_first} tokens "
            f"({' '.join(encoded.tokens[:num_first])}), and encode adds one at most; leave one or "
            'none in its "post_processor" and write the others into the text'
        )
    return encoded.ids[0]


def _cannot_encode(error: Exception) -> TokenizerError:
    said = " ".join(str(error).split())[:200]
    return TokenizerError(
        f"the tokenizer.json cannot encode a text ({said}); it is damaged: get it again"
    )
