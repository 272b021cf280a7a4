"""SentencePiece models (Kudo and Richardson, 2018, arXiv 1808.06226): load one, train one.

Training is set for source code and for Chinese as much as for English: no normalisation, every
space, tab and line end kept, bytes for characters that have no piece. So decoding what was encoded
gives the same text, whatever the text is.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from llmasos_jax.config.schema import Config
from llmasos_jax.data.files import write_atomically
from llmasos_jax.data.scan import choice
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.split import Split, split_documents
from llmasos_jax.data.text import utf8
from llmasos_jax.data.tokenizers.words import inside_pieces, sentinels
from llmasos_jax.errors import TokenizerError

FILE = "tokenizer.model"
_VERSION = 2  # of the training below; another one trains cached tokenizers again
# unk, bos, eos and 256 bytes.
_RESERVED = 3 + 256
_SPACE = "\u2581"  # what SentencePiece writes for a space
_CHUNK_CHARS = 1000  # the trainer reads texts of at most 4192 bytes and skips longer ones
_SETTINGS: dict[str, Any] = {
    **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
    "character_coverage": 1.0,
    # Without a piece, a space would be the three bytes of U+2581, and come back as that.
    "required_chars": _SPACE,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "byte_fallback": True,
    # Fixed: with the unigram model, sums over threads would change with their number.
    "num_threads": 4,
    "minloglevel": 3,
}


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
      model: the bytes of a `.model` file.
      name: where they come from, for error messages.

    Raises:
      TokenizerError: the bytes are no SentencePiece model.
    """

    def __init__(self, model: bytes, name: str = FILE) -> None:
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise TokenizerError(
                f"{name} is not a SentencePiece model; expected a .model file"
            ) from error
        self.vocab_size: int = self._processor.get_piece_size()
        if self.vocab_size == 0:
            raise TokenizerError(f"{name} is not a SentencePiece model; expected a .model file")
        self.bos_id = _absent_if_negative(self._processor.bos_id())
        self.eos_id = _absent_if_negative(self._processor.eos_id())
        self.adds_bos = self.bos_id is not None
        self.pad_id = _absent_if_negative(self._processor.pad_id())
        self.unk_id = _absent_if_negative(self._processor.unk_id())
        self._space_ids = self._find_space_ids()
        controls = [i for i in range(self.vocab_size) if self._processor.is_control(i)]
        names = sorted(map(self._processor.id_to_piece, controls), key=len, reverse=True)
        self._controls = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "")

    @classmethod
    def from_file(cls, path: Path) -> SentencePieceTokenizer:
        """Reads a `.model` file."""
        return cls(path.read_bytes(), str(path))

    @property
    def mask_id(self) -> int | None:
        """Id of the piece <mask> or [MASK]; None if there is none."""
        ids = self._processor.piece_to_id(["<mask>", "[MASK]"])
        return next((i for i in ids if i != self.unk_id), None)

    @property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of <extra_id_0>, <extra_id_1>, ..., in this order."""
        return sentinels(self._processor.id_to_piece(list(range(self.vocab_size))))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are no text: control pieces, unknown, the mask, sentinels."""
        processor = self._processor
        ids = (i for i in range(self.vocab_size) if processor.is_control(i))
        named = (self.unk_id, self.mask_id, *self.sentinel_ids)
        return tuple(sorted({*ids, *(i for i in named if i is not None)}))

    @property
    def is_inside_v(self) -> np.ndarray:
        """Bool [V]: pieces that do not begin with a space or a Chinese character."""
        return inside_pieces(self._processor.id_to_piece(list(range(self.vocab_size))))

    def _find_space_ids(self) -> list[int] | None:
        """Ids of the three bytes of U+2581, for a model that would read it as a space; else None.

        A model that adds a space in front or merges spaces does not give texts back exactly anyway;
        it is left to do what it does in every other program.
        """
        processor = self._processor
        if "".join(processor.encode("  ", out_type=str)) != _SPACE * 2:
            return None
        ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        return ids if all(processor.is_byte(i) for i in ids) else None

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, after `bos_id`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, made on all cores."""
        for text in texts:
            if not text.isascii():
                utf8(text)  # half a surrogate pair would be an error without a place
        threads = min(len(texts), os.cpu_count() or 1)
        encoded = self._processor.encode(list(texts), out_type=int, num_threads=max(1, threads))
        prefix = [] if self.bos_id is None else [self.bos_id]
        return [
            prefix + (self._encode_with_marks(text) if self._has_marks(text) else ids)
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _has_marks(self, text: str) -> bool:
        return self._space_ids is not None and _SPACE in text

    def _encode_with_marks(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split(f"({_SPACE})", text):
            ids += (self._space_ids or []) if part == _SPACE else self._processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text; ids that the model does not have give U+FFFD."""
        text, known = "", []
        for i in ids:
            i = int(i)
            if 0 <= i < self.vocab_size:
                if not self._processor.is_control(i) and not self._processor.is_unknown(i):
                    known.append(i)
                continue
            text += self._processor.decode(known) + "\ufffd"
            known = []
        return text + self._processor.decode(known)

    def token(self, number: int) -> str | None:
        """The text of an id, a control token's too; None if there is no such id."""
        return self._processor.id_to_piece(number) if 0 <= number < self.vocab_size else None

    def encode_marked(self, text: str) -> list[int]:
        """Returns the ids of a text in which control tokens stand, written out; adds none."""
        utf8(text)
        ids: list[int] = []
        for part in self._controls.split(text) if self._controls.pattern else [text]:
            number = self._processor.piece_to_id(part) if part else 0
            if part and self._processor.is_control(number):
                ids.append(number)
            elif part:
                marked = self._has_marks(part)
                ids += self._encode_with_marks(part) if marked else self._processor.encode(part)
        return ids

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes `tokenizer.model`."""
        (folder / FILE).write_bytes(self._model)
        return {"kind": "sentencepiece", "file": FILE}


def trained(cfg: Config, documents: Sequence[str], cache: Path) -> SentencePieceTokenizer:
    """Trains a tokenizer on the documents that are not held out, or takes it from `cache`.

    The text is drawn from the documents in the order of their hashes, so that neither the order of
    the files nor the number of cores changes the result.

    Raises:
      TokenizerError: too little text for `model.vocab_size` pieces, or too few pieces to be useful.
    """
    key, split = text_key(cfg, documents)
    settings = (cfg.model.vocab_size, cfg.tokenizer, key, sentencepiece.__version__, _VERSION)
    name = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    path = cache / f"tokenizer-{name}.model"
    if path.is_file():
        return SentencePieceTokenizer.from_file(path)
    texts = training_texts(cfg, documents, split)
    model = train_model(texts, cfg.model.vocab_size, cfg.tokenizer.model_type)
    write_atomically(path, model)
    return SentencePieceTokenizer(model)


def text_key(cfg: Config, documents: Sequence[str]) -> tuple[str, Split | None]:
    """A key of the text that a tokenizer is trained on, and the split if that had to be made."""
    if isinstance(documents, Documents):  # knows that it is unchanged without being read again
        key = f"{documents.key} {cfg.data.seed} {cfg.data.heldout_fraction}"
        chosen = choice(cfg.data)
        return f"{key} {sorted(chosen.items())}" if chosen else key, None
    split = split_documents(documents, cfg.data)
    return split.digest, split


def training_texts(cfg: Config, documents: Sequence[str], split: Split | None) -> list[str]:
    """The first `tokenizer.train_chars` characters of the training documents, by their hashes."""
    split = split or split_documents(documents, cfg.data)
    return _up_to(cfg.tokenizer.train_chars, (documents[i] for i in split.by_hash))


def learned_pieces(
    texts: Sequence[str], vocab_size: int, special: Sequence[str]
) -> list[tuple[str, float]]:
    """Pieces and scores of a unigram model that is trained here, in the order of their ids.

    Args:
      texts: what to learn from.
      vocab_size: pieces in all, with `special` and the 256 bytes.
      special: the first pieces: padding, end, unknown, begin, and others.

    Raises:
      TokenizerError: as `train_model`.
    """
    pad, eos, unk, bos, *controls = special
    model = train_model(
        texts,
        vocab_size,
        "unigram",
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": 3},
        **{"pad_piece": pad, "eos_piece": eos, "unk_piece": unk, "bos_piece": bos},
        control_symbols=controls,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = list(range(processor.get_piece_size()))
    return list(zip(processor.id_to_piece(ids), processor.get_score(ids), strict=True))


def train_model(
    texts: Sequence[str], vocab_size: int, model_type: str = "bpe", **settings: Any
) -> bytes:
    r"""Trains a SentencePiece model and returns its file's bytes.

    Args:
      texts: what to learn from.
      vocab_size: pieces in all, with unk, bos, eos and the 256 bytes.
      model_type: "bpe" or "unigram".
      settings: of the trainer, in place of `_SETTINGS`.

    Raises:
      TokenizerError: too little text for so many pieces, or no room beside the bytes.

    Example:
      >>> model = train_model(["def f(x):\n    return x + 1\n" * 9], vocab_size=290)
      >>> tokenizer = SentencePieceTokenizer(model)
      >>> tokenizer.decode(tokenizer.encode("\tdef  f:\r\n"))
      '\tdef  f:\r\n'
    """
    _check_training(vocab_size, model_type)
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chunks(texts, _separators(texts, vocab_size)),
            model_writer=out,
            vocab_size=vocab_size,
            model_type=model_type,
            **(_SETTINGS | settings),
        )
    except (RuntimeError, OSError) as error:
        most = re.search(r"value <= (\d+)", str(error))
        remedy = f"at most {most[1]} are possible: " if most else ""
        raise TokenizerError(
            f"{sum(map(len, texts))} characters of text are too little to train "
            f"model.vocab_size={vocab_size} pieces; "
            f'{remedy}lower it, give more text, or set tokenizer.kind="bytes"'
        ) from error
    return out.getvalue()


def _check_training(vocab_size: int, model_type: str) -> None:
    if model_type not in ("bpe", "unigram"):
        raise TokenizerError(
            f'tokenizer.model_type="{model_type}" is none of sentencepiece\'s; expected "bpe" or '
            '"unigram", or set tokenizer.kind="tokenizers"'
        )
    if vocab_size <= _RESERVED:
        raise TokenizerError(
            f"model.vocab_size={vocab_size} leaves no pieces beside the {_RESERVED} for bytes and "
            "specials; "
            'raise it (512 is a start) or set tokenizer.kind="bytes"'
        )


def _separators(texts: Sequence[str], vocab_size: int) -> re.Pattern[str]:
    """Matches the characters that get no piece of their own and are written as bytes instead.

    These are the rarest, 5 in 10,000 of the text; more if the others would take over half of the
    pieces: a Chinese text, with its thousands of characters, would leave none for longer ones. The
    trainer skips a text with a tab or a NUL, so they are never learned.
    """
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    least = 0.9995 * counts.total()
    kept: set[str] = set()
    for char, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if least <= 0 or len(kept) >= (vocab_size - _RESERVED) // 2:
            break
        kept.add(char)
        least -= count
    rare = set(counts) - kept | {"\t", "\0", _SPACE}
    return re.compile(f"[{re.escape(''.join(sorted(rare)))}]")


def _chunks(texts: Sequence[str], separators: re.Pattern[str]) -> Iterator[str]:
    """Cuts texts at separators, and at line ends into pieces as short as the trainer wants them."""
    for text in texts:
        for part in separators.split(text):
            start = 0
            while start < len(part):
                stop = min(start + _CHUNK_CHARS, len(part))
                line_end = part.rfind("\n", start, stop) + 1
                if stop < len(part) and line_end > 0:
                    stop = line_end
                yield part[start:stop]
                start = stop


def _up_to(chars: int, texts: Iterator[str]) -> list[str]:
    taken: list[str] = []
    for text in texts:
        taken.append(text[:chars])
        chars -= len(taken[-1])
        if chars <= 0:
            break
    return taken


def _absent_if_negative(number: int) -> int | None:
    return None if number < 0 else number
