"""Writes a `tokenizer.json` of the Hugging Face tokenizers library from a plain vocabulary.

Four kinds are enough for the families: byte-level BPE (GPT-2 and after), BPE by scores
(sentencepiece's, Llama 1 and 2, Gemma), sentencepiece's unigram (T5, XLM-RoBERTa) and WordPiece
(BERT).
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.data.tokenizers.words import BYTE_LIKE
from llmasos_jax.data.tokenizers.words import byte_characters as byte_characters
from llmasos_jax.errors import TokenizerError
from llmasos_jax.format.strict import shown

SPACE = "\u2581"  # what sentencepiece writes for a space


@dataclass(frozen=True)
class Added:
    """A token that is found in a text before anything else.

    Attributes:
      content: its text.
      id: its number.
      special: whether decoding leaves it out.
      lstrip, rstrip: whether it takes the white space on that side with it.
    """

    content: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Ends:
    """Which ids begin and end a text, and which of them an encoder's text has by itself."""

    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    adds_eos: bool = False


def splits(patterns: Iterable[str], *, add_prefix_space: bool = False) -> dict[str, Any]:
    """A pre-tokenizer that cuts by one regular expression after the other, then maps bytes.

    Each cuts the pieces that the ones before have left; what matches and what lies between become
    pieces of their own.
    """
    cuts = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": False,
    }
    # A prefix space has to be there before the text is cut.
    first = [{**to_bytes, "use_regex": True}] if add_prefix_space else [*cuts, to_bytes]
    return {"type": "Sequence", "pretokenizers": first}


def apart(characters: Iterable[str]) -> dict[str, Any]:
    """A pre-tokenizer that keeps each of these characters apart from its neighbours."""
    pattern = "".join(f"\\x{{{ord(c):X}}}" for c in characters)
    return {
        "type": "Split",
        "pattern": {"Regex": f"[{pattern}]"},
        "behavior": "Isolated",
        "invert": False,
    }


def byte_level_bpe(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    pre_tokenizer: Mapping[str, Any],
    *,
    ignore_merges: bool = False,
    normalizer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Byte-level BPE, where every byte has a printable character that stands for it.

    Args:
      vocab: token -> id.
      merges: pairs, the most urgent one first.
      pre_tokenizer: how a text is cut before bytes are merged.
      ignore_merges: whether a piece that is a token is taken whole (Llama 3).
      normalizer: what is done to a text first.
    """
    return {
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            **_bpe(vocab, merges),
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
        },
    }


def scored_bpe(
    vocab: Mapping[str, int],
    scores: Mapping[str, float],
    unk: str | None,
    *,
    add_space_prefix: bool = True,
    prefix_everywhere: bool = True,
) -> dict[str, Any]:
    """Sentencepiece's BPE: of two neighbours that make a piece, those with the best score merge.

    Args:
      vocab: token -> id, control and byte tokens (`<0x0A>`) too.
      scores: of the pieces that merging may make.
      unk: the token for what has no piece; None where all 256 bytes have one.
      add_space_prefix: whether a text begins with a space that it does not have.
      prefix_everywhere: whether it does behind every special token too.
    """
    has_bytes = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = [{"type": "Prepend", "prepend": SPACE}]
    metaspace = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "first" if add_space_prefix else "never",
        "split": False,
    }
    inside = prefix_everywhere or not add_space_prefix
    normalizers = [*(prefix if add_space_prefix else []), space]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if inside else None,
        "pre_tokenizer": None if inside else metaspace,
        "decoder": _space_decoder(add_space_prefix),
        "model": {
            **_bpe(vocab, scored_merges(scores)),
            "unk_token": unk,
            "fuse_unk": True,
            "byte_fallback": has_bytes,
            "ignore_merges": False,
        },
    }


def scored_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best score first.

    Of pieces with one score the first of `scores` goes first; of one piece's pairs the one with the
    longer left part, which is what merging from the left leaves in a run of one character.

    Example:
      >>> scored_merges({"a": -2.0, "b": -3.0, "ab": -1.0, "aba": 0.0})
      [('ab', 'a'), ('a', 'b')]
    """
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                merges.append((left, right))
    return merges


def unigram(
    pieces: Sequence[tuple[str, float]],
    unk_id: int,
    *,
    charsmap: bytes = b"",
    add_space_prefix: bool = True,
    squeeze: bool = True,
) -> dict[str, Any]:
    """Sentencepiece's unigram model: of all ways to cut a text the most probable one.

    References:
      Kudo, 2018, arXiv 1804.10959.

    Args:
      pieces: (piece, log probability), in the order of their ids.
      unk_id: of what has no piece.
      charsmap: sentencepiece's compiled rules of normalisation; empty where there are none.
      add_space_prefix: whether a text begins with a space that it does not have.
      squeeze: whether spaces at both ends go, and several become one.
    """
    rules: list[dict[str, Any]] = []
    if charsmap:
        encoded = base64.b64encode(charsmap).decode("ascii")
        rules.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if squeeze:
        # Not ^ and $, which are the ends of every line too. Of the sign for a space in the text
        # itself only what ends the text goes, as in sentencepiece.
        ends = f"\\A +|[ {SPACE}]+\\z"
        rules += [_replace(ends, ""), _replace(" {2,}", " ")]
    rules.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if add_space_prefix:
        rules.append({"type": "Prepend", "prepend": SPACE})
    names = {piece for piece, _ in pieces}
    has_bytes = all(f"<0x{byte:02X}>" in names for byte in range(256))
    cut = {"type": "Split", "pattern": {"Regex": BYTE_LIKE}, "invert": False}
    return {
        "normalizer": {"type": "Sequence", "normalizers": rules},
        # The model would take "<0x41>" in a text for the byte.
        "pre_tokenizer": {**cut, "behavior": "MergedWithPrevious"} if has_bytes else None,
        "decoder": _space_decoder(add_space_prefix),
        "model": {
            "type": "Unigram",
            "unk_id": unk_id,
            "vocab": [list(pair) for pair in pieces],
            "byte_fallback": has_bytes,
        },
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _space_decoder(add_space_prefix: bool) -> dict[str, Any]:
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {"type": "Sequence", "decoders": back if add_space_prefix else back[:3]}


def wordpiece(
    vocab: Mapping[str, int],
    unk: str,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    chinese_chars: bool = True,
) -> dict[str, Any]:
    """BERT's WordPiece: the longest piece first; pieces inside a word begin with `##`.

    Args:
      vocab: token -> id.
      unk: the token for a word that has no pieces.
      lowercase: whether letters become small.
      strip_accents: whether accents go; None does as `lowercase`.
      chinese_chars: whether each Chinese character is a word.
    """
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": chinese_chars,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unk,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": dict(vocab),
        },
    }


def opened(parts: Mapping[str, Any], added: Sequence[Added], ends: Ends) -> Tokenizer:
    """Makes the tokenizer.

    Args:
      parts: normalizer, pre_tokenizer, decoder and model.
      added: tokens that are found first.
      ends: what begins and ends a text.

    Raises:
      TokenizerError: the parts do not make a tokenizer.
    """
    from llmasos_jax.data.tokenizers.huggingface import (
        MASK_NAMES,
        PAD_NAMES,
        HuggingFaceTokenizer,
        usual_id,
    )

    text, tokenizer = parsed(parts, added, ends)
    return HuggingFaceTokenizer(
        text,
        bos_id=ends.bos_id,
        eos_id=ends.eos_id,
        adds_bos=ends.adds_bos,
        mask_id=usual_id(tokenizer, MASK_NAMES),
        pad_id=usual_id(tokenizer, PAD_NAMES),
        parsed=tokenizer,
    )


def parsed(
    parts: Mapping[str, Any], added: Sequence[Added], ends: Ends | None = None
) -> tuple[str, Any]:
    """The `tokenizer.json` of these parts, as text and as a `tokenizers.Tokenizer`.

    Raises:
      TokenizerError: the parts do not make a tokenizer.
    """
    import tokenizers

    vocab = parts["model"]["vocab"]
    numbered = (
        vocab.items() if isinstance(vocab, dict) else ((p, i) for i, (p, _) in enumerate(vocab))
    )
    names = {number: token for token, number in numbered}
    config = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {**dataclasses.asdict(token), "single_word": False, "normalized": False}
            for token in sorted(added, key=lambda token: token.id)
        ],
        "post_processor": None if ends is None else _template(ends, names),
        **parts,
    }
    try:
        text = json.dumps(config, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
        return text, tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # bare Exception, and the library's panics are not even that
        raise TokenizerError(
            f"the vocabulary makes no tokenizer ({shown(str(error))}); expected merges of tokens "
            "that are in it. Get the model's file again"
        ) from error


def _bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }


def _template(ends: Ends, names: Mapping[int, str]) -> dict[str, Any] | None:
    """What other programs add to a text; ours reads `adds_bos` in the entry."""
    bos = ends.bos_id if ends.adds_bos else None
    eos = ends.eos_id if ends.adds_eos else None
    if bos is None and eos is None:
        return None

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        parts = [(bos, "SpecialToken"), (name, "Sequence"), (eos, "SpecialToken")]
        return [
            {role: {"id": what if role == "Sequence" else names[what], "type_id": kind}}
            for what, role in parts
            if what is not None
        ]

    special = {
        names[number]: {"id": names[number], "ids": [number], "tokens": [names[number]]}
        for number in (bos, eos)
        if number is not None
    }
    first, second = sequence("A", 0), sequence("B", 1)
    if bos is not None and eos is not None:
        second = second[1:]  # an encoder's: [CLS] a [SEP] b [SEP]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": special,
    }
