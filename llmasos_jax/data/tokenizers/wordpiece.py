"""BERT's WordPiece (Schuster and Nakajima, 2012; Devlin et al., 2018, arXiv 1810.04805).

A text is cleaned of control characters, cut at white space, punctuation and around each Chinese
character, and each word is written as the longest pieces that the vocabulary has; those inside a
word begin with `##`. A word that cannot be written is [UNK].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.errors import TokenizerError

FILE = "vocab.txt"
SPECIAL = {
    **{"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}


def vocabulary_file(raw: bytes, where: Path) -> dict[str, int]:
    r"""The pieces of a `vocab.txt`, one a line; a piece's id is the number of its line.

    Args:
      raw: the file's bytes, UTF-8.
      where: the file, for messages.

    Raises:
      TokenizerError: it is not UTF-8, is empty, or has a piece twice.

    Example:
      >>> vocabulary_file(b"[UNK]\na\n##b\n", Path("vocab.txt"))
      {'[UNK]': 0, 'a': 1, '##b': 2}
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{where} is not UTF-8 text; get it again") from error
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    vocab: dict[str, int] = {}
    for number, piece in enumerate(lines):
        if piece in vocab:
            raise TokenizerError(
                f"{where} has the piece {piece[:40]!r} twice, in lines {vocab[piece] + 1} and "
                f"{number + 1}; expected each once: get the file again"
            )
        vocab[piece] = number
    if not vocab:
        raise TokenizerError(f"{where} has no lines; expected BERT's pieces, one a line")
    return vocab


def bert_tokenizer(
    vocab: Mapping[str, int],
    where: Path,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    chinese_chars: bool = True,
    special: Mapping[str, str] = SPECIAL,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer of these pieces, with its template [CLS] a [SEP] b [SEP].

    Args:
      vocab: piece -> id.
      where: what they are of, for messages.
      lowercase: whether letters become small.
      strip_accents: whether accents go; None does as `lowercase`.
      chinese_chars: whether each Chinese character is a word.
      special: names of the tokens "pad", "unk", "cls", "sep" and "mask"; only those that are in
        `vocab` are special.

    Raises:
      TokenizerError: the unknown token is not in `vocab`.
    """
    unk = special["unk"]
    if unk not in vocab:
        raise TokenizerError(
            f'{where} has no "{unk[:40]}"; expected BERT\'s pieces, with one for what has none'
        )
    made = tokenizers.Tokenizer(
        models.WordPiece(dict(vocab), unk_token=unk, max_input_chars_per_word=100)
    )
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    names = dict.fromkeys(name for name in special.values() if name in vocab)
    made.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in names])
    cls, sep = special["cls"], special["sep"]
    if cls in vocab and sep in vocab:
        made.post_processor = processors.TemplateProcessing(
            single=[f"{cls}:0", "$A:0", f"{sep}:0"],
            pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
            special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
        )
    return made


def from_vocabulary_file(path: Path, *, lowercase: bool) -> HuggingFaceTokenizer:
    """Opens a `vocab.txt`.

    Raises:
      TokenizerError: it cannot be read or is no such file, or the `tokenizer_config.json` beside it
        says of case, accents or Chinese characters something else than what is made here.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error}); check it") from error
    _check_beside(path, lowercase)
    vocab = vocabulary_file(raw, path)
    made = bert_tokenizer(vocab, path, lowercase=lowercase)
    return HuggingFaceTokenizer(
        made.to_str(),
        bos_id=vocab.get(SPECIAL["cls"]),
        eos_id=vocab.get(SPECIAL["sep"]),
        adds_bos=made.num_special_tokens_to_add(False) > 0,
        mask_id=vocab.get(SPECIAL["mask"]),
        pad_id=vocab.get(SPECIAL["pad"]),
        parsed=made,
    )


def _check_beside(path: Path, lowercase: bool) -> None:
    beside = path.with_name("tokenizer_config.json")
    if not beside.is_file():
        return
    try:
        found: Any = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{beside} is not JSON; repair it or take it away") from error
    made = {"do_lower_case": lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    for key, value in made.items():
        if isinstance(found, dict) and found.get(key, value) != value:
            remedy = (
                f"set tokenizer.lowercase={str(not lowercase).lower()}"
                if key == "do_lower_case"
                else "make a tokenizer.json with transformers and name that"
            )
            raise TokenizerError(
                f"{beside} says {key}={json.dumps(found[key])[:40]}, and {path.name} is read with "
                f"{key}={json.dumps(value)}; {remedy}"
            )
