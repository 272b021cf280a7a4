"""How text becomes ids: one Protocol, three kinds, and anybody's own."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import Config
from llmasos_jax.data.text import utf8
from llmasos_jax.data.words import begins_word
from llmasos_jax.errors import ConfigError, TokenizerError


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


def _load_bytes(entry: Mapping[str, Any], folder: Path) -> Tokenizer:
    return ByteTokenizer()


def _load_sentencepiece(entry: Mapping[str, Any], folder: Path) -> Tokenizer:
    from llmasos_jax.data.sentencepiece import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer.from_file(entry_file(entry, folder))
    for key in ("bos_id", "eos_id"):
        said, own = entry.get(key), getattr(tokenizer, key)
        if said is not None and said != own:
            raise TokenizerError(
                f"tokenizer.{key}={said}, but the sentencepiece file has {own}; correct it, or "
                "leave it out: a sentencepiece model knows its own"
            )
    return tokenizer


def _load_tokenizers(entry: Mapping[str, Any], folder: Path) -> Tokenizer:
    from llmasos_jax.data.huggingface import HuggingFaceTokenizer

    # The entry says it all: in a model's folder nothing is guessed from the names of tokens.
    said = {"bos_id": None, "eos_id": None, "adds_bos": False, **entry}
    return HuggingFaceTokenizer.from_file(entry_file(entry, folder), said)


# What loads a kind: (entry, folder) -> Tokenizer. The libraries are imported only when used.
TABLE: dict[str, Callable[[Mapping[str, Any], Path], Tokenizer]] = {
    "bytes": _load_bytes,
    "sentencepiece": _load_sentencepiece,
    "tokenizers": _load_tokenizers,
}


def load_tokenizer(
    entry: Mapping[str, Any], folder: Path, *, allow_code: bool = False
) -> Tokenizer:
    """Loads the tokenizer that a `model.json` describes; the inverse of `Tokenizer.save`.

    Args:
      entry: `{"kind": ..., "file": ..., ...}`; `file` stands in `folder`.
      folder: the model's folder.
      allow_code: whether `kind` may be `"package.module:name"`, a callable `(entry, folder) ->
        Tokenizer`, which is imported and run. Off by default: opening a model runs no code.

    Raises:
      TokenizerError: the kind is unknown, or the file is absent or no such tokenizer.

    Example:
      >>> load_tokenizer({"kind": "bytes"}, Path(".")).vocab_size
      259
    """
    kind = entry.get("kind")
    if not isinstance(kind, str):
        raise TokenizerError(
            f"tokenizer.kind={kind!r} is not a string; known: {', '.join(sorted(TABLE))}"
        )
    if ":" in kind and not allow_code:
        raise TokenizerError(
            f'tokenizer.kind="{kind}" names code, and opening a model runs none; pass '
            "allow_code=True (--allow-code) if you trust it"
        )
    try:
        load = resolve(kind, TABLE, "tokenizer.kind")
    except ConfigError as error:
        raise TokenizerError(str(error)) from error
    tokenizer = load(entry, folder)
    if not isinstance(tokenizer, Tokenizer):
        raise TokenizerError(
            f'tokenizer.kind="{kind}" gave a {type(tokenizer).__name__}; expected vocab_size, '
            "bos_id, eos_id, "
            "adds_bos, encode, decode and save (llmasos_jax.data.tokenizer.Tokenizer)"
        )
    return tokenizer


def entry_file(entry: Mapping[str, Any], folder: Path) -> Path:
    """Returns the path of an entry's file, which may not leave `folder`.

    Raises:
      TokenizerError: the entry has no file, the file leaves the folder, or is not there.
    """
    name = entry.get("file")
    if not isinstance(name, str) or not name:
        raise TokenizerError(
            f'tokenizer "{entry["kind"]}" has file={name!r}; expected the name of its file'
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise TokenizerError(
            f'tokenizer file "{name}" leaves the folder {folder}; copy it in and name it there'
        )
    if not path.is_file():
        raise TokenizerError(
            f"tokenizer file {path} is not there; put it back or correct tokenizer.file"
        )
    return path


def build_tokenizer(cfg: Config, documents: Sequence[str], cache: Path) -> Tokenizer:
    """Returns a training run's tokenizer: loads `cfg.tokenizer.path`, or trains one.

    Args:
      cfg: `tokenizer`, `model.vocab_size` and, for the split, `data` are read.
      documents: all documents; a tokenizer is trained on those that are not held out.
      cache: folder for the trained tokenizer, so that a second run does not train it again.

    Raises:
      TokenizerError: unknown kind, no such file, not such a file, more ids than `model.vocab_size`,
        or too little text for so many pieces.
    """
    kind, path = cfg.tokenizer.kind, cfg.tokenizer.path
    if kind == "sentencepiece" and path is None:
        from llmasos_jax.data.sentencepiece import trained

        tokenizer: Tokenizer = trained(cfg, documents, cache)
    elif kind == "tokenizers" and path is None:
        from llmasos_jax.data import trained as jsons

        tokenizer = jsons.trained(cfg, documents, cache)
    else:
        file = None if path is None else Path(path).expanduser()
        if file is not None and file.is_dir():
            file = _file_in(file, kind)
        entry = {"kind": kind} if file is None else {"kind": kind, "file": file.name}
        folder = file.parent if file else Path()
        if kind == "tokenizers":
            tokenizer = _from_path(entry_file(entry, folder), cfg.tokenizer.lowercase)
        else:
            tokenizer = load_tokenizer(entry, folder, allow_code=True)
    if tokenizer.vocab_size > cfg.model.vocab_size:
        raise TokenizerError(
            f'tokenizer "{path or kind}" has {tokenizer.vocab_size} ids, '
            f"model.vocab_size={cfg.model.vocab_size} is "
            f"fewer; set model.vocab_size={tokenizer.vocab_size} or more"
        )
    return tokenizer


def _file_in(folder: Path, kind: str) -> Path:
    if kind != "tokenizers":
        return folder / "tokenizer.model"
    has_list = (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file()
    return folder / ("vocab.txt" if has_list else "tokenizer.json")


def _from_path(path: Path, lowercase: bool) -> Tokenizer:
    """A `tokenizer.json`, or BERT's list of pieces."""
    if path.suffix == ".txt":
        from llmasos_jax.data.wordpiece import from_vocabulary_file

        return from_vocabulary_file(path, lowercase=lowercase)
    from llmasos_jax.data.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer.from_file(path)


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[Any]:
    """Returns the ids of each text, by the tokenizer's faster way if it has one.

    Example:
      >>> [ids.tolist() for ids in encode_batch(ByteTokenizer(), ["a", ""])]
      [[256, 97], [256]]
    """
    if isinstance(tokenizer, BatchTokenizer):
        return tokenizer.encode_batch(texts)
    return (tokenizer.encode(text) for text in texts)


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
