"""A tokenizer of ours as the metadata of a GGUF file: `tokenizer.py` the other way round.

What is written is read back by the reader, and has to give the same ids for a set of texts.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_input
from llmasos_jax.errors import TokenizerError
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.gguf.pretokenizers import TABLE, pattern_of_gpt2
from llmasos_jax.interop.gguf.tokenizer import end_ids, rebuild
from llmasos_jax.interop.hf.sentencepiece import read_proto
from llmasos_jax.interop.tokenizerjson import SPACE, apart, byte_characters

_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
PROBES = (
    *("Hello, world! 123", "  two  spaces\nand a line\n\n", "Über naïve 世界 🙂", ""),
    *("def f(x):\n\treturn x**2  # it's 3.14159", "I'LL we've DON'T 1234567 a1b2", "a\u0301é ﬁ"),
)


class _UnsaidError(Exception):
    """GGUF has no words for a tokenizer; the message says what for."""


def write_tokenizer(files: ModelFiles, cfg: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer's metadata, and what of it is not there, one line each.

    Args:
      files: the model.
      cfg: the model; its vocabulary may be larger than the tokenizer's.

    Returns:
      The keys; without a tokenizer that GGUF can say, those of a file that has none.
    """
    if files.tokenizer is None:
        return _none(), ["the model has no tokenizer, so the file has none"]
    tokenizer, notes = files.tokenizer.load(), []
    try:
        found = _said(files.tokenizer, tokenizer, cfg, notes)
        template = files.manifest.generation.chat_template
        if template is not None:
            found["tokenizer.chat_template"] = template
        ends = files.manifest.generation.eos_ids
        if not ends and cfg.causal and tokenizer.eos_id is not None:
            ends = (tokenizer.eos_id,)  # what ends a text of such a model here, too
        _add_ends(found, ends, notes)
        if stop := files.manifest.generation.stop:
            notes.append(f"GGUF has no words for texts that end an answer: {list(stop)}")
        _check_back(found, tokenizer, cfg)
    except (_UnsaidError, TokenizerError) as error:
        return _none(), [f"the tokenizer is left out: {error}"]
    return found, notes


def _none() -> dict[str, Any]:
    return {f"{_KEY}model": "none"}


def _check_back(found: Mapping[str, Any], tokenizer: Tokenizer, cfg: ModelConfig) -> None:
    again = rebuild(found)
    if again is None:
        raise _UnsaidError("it is not read back")
    other = again.load()
    for text in PROBES:
        if cfg.causal:
            one, two = tokenizer.encode(text), other.encode(text)
        else:
            one, two = encode_input(tokenizer, text)[0], encode_input(other, text)[0]
        if one != two:
            raise _UnsaidError(f"as GGUF says it, {text!r} would be {two[:12]}, not {one[:12]}")


def _said(kept: Any, tokenizer: Tokenizer, cfg: ModelConfig, notes: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entry = kept.save(folder)
        kind = entry["kind"]
        if kind == "bytes":
            tokens, types, found = _of_bytes()
        elif kind == "sentencepiece":
            tokens, types, found = _of_sentencepiece(folder / entry["file"], notes)
        elif kind == "tokenizers":
            raw = json.loads((folder / entry["file"]).read_text(encoding="utf-8"))
            tokens, types, found = _of_json(raw, notes)
        else:
            raise _UnsaidError(f'GGUF has no tokenizer of the kind "{kind}"')
    if len(tokens) > cfg.vocab_size:
        raise _UnsaidError(f"it has {len(tokens)} tokens, the model {cfg.vocab_size}")
    for number in range(len(tokens), cfg.vocab_size):
        tokens.append(f"[PAD{number}]")
        types.append(_UNUSED)
    said: dict[str, Any] = {f"{_KEY}model": found.pop("model")}
    if "pre" in found:
        said[f"{_KEY}pre"] = found.pop("pre")
    said[f"{_KEY}tokens"] = tokens
    if "scores" in found:
        scores = found.pop("scores")
        said[f"{_KEY}scores"] = [*scores, *[0.0] * (len(tokens) - len(scores))]
    said[f"{_KEY}token_type"] = types
    said |= {f"{_KEY}{name}": value for name, value in found.items()}
    return said | _ids(tokenizer, cfg)


def _ids(tokenizer: Tokenizer, cfg: ModelConfig) -> dict[str, Any]:
    fields = {
        **{"bos": "bos_id", "eos": "eos_id", "padding": "pad_id", "mask": "mask_id"},
        "unknown": "unk_id",
    }
    if not cfg.causal:
        fields |= {"cls": "cls_id", "seperator": "sep_id"}  # so spelt there
        fields |= {"bos": "cls_id", "eos": "sep_id"}
    found: dict[str, Any] = {}
    for name, field in fields.items():
        number = getattr(tokenizer, field, None)
        if number is not None:
            found[f"{_KEY}{name}_token_id"] = int(number)
    if cfg.causal:
        found[f"{_KEY}add_bos_token"] = tokenizer.adds_bos
        found[f"{_KEY}add_eos_token"] = False
    else:
        found["tokenizer.ggml.token_type_count"] = max(cfg.token_types, 1)
    return found


def _add_ends(found: dict[str, Any], eos_ids: Sequence[int], notes: list[str]) -> None:
    """The ids that end an answer; GGUF has three keys for them, and knows some by their names."""
    for key in ("eos", "eot", "eom"):
        left = [i for i in eos_ids if i not in end_ids(found)]
        if left and f"{_KEY}{key}_token_id" not in found:
            found[f"{_KEY}{key}_token_id"] = int(left[0])
    left = [i for i in eos_ids if i not in end_ids(found)]
    if left:
        notes.append(f"the ids {left} end an answer here; GGUF has no more keys for that")
    if eos_ids and (more := [i for i in end_ids(found) if i not in eos_ids]):
        notes.append(f"the ids {more} end an answer there by what they are, and not here")


def _of_bytes() -> tuple[list[str], list[int], dict[str, Any]]:
    """Every byte is a token of byte-level BPE that never merges."""
    tokens = [*byte_characters(), "<|bos|>", "<|eos|>", "<|pad|>"]
    types = [_NORMAL] * 256 + [_CONTROL] * 3
    return tokens, types, {"model": "gpt2", "pre": "gpt-2", "merges": []}


def _of_sentencepiece(path: Path, notes: list[str]) -> tuple[list[str], list[int], dict[str, Any]]:
    """GGUF has sentencepiece's own pieces, scores and numbers for the types of tokens."""
    proto = read_proto(path)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise _UnsaidError(
            "it is no BPE model of sentencepiece, and files of other kinds are not read"
        )
    rules = proto.normalizer_spec
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces:
        raise _UnsaidError("it rewrites characters or spaces of a text, which GGUF does not say")
    notes.append(f"{SPACE} in a text is read as a space there")
    scores = [float(piece.score) for piece in proto.pieces]
    found = {"model": "llama", "scores": scores, "add_space_prefix": rules.add_dummy_prefix}
    return [p.piece for p in proto.pieces], [p.type for p in proto.pieces], found


def _of_json(
    raw: Mapping[str, Any], notes: list[str]
) -> tuple[list[str], list[int], dict[str, Any]]:
    model = raw["model"]
    kind = model.get("type")
    if kind == "WordPiece":
        return _of_words(raw)
    if kind != "BPE":
        raise _UnsaidError(f"llama.cpp's files hold no {kind} tokenizer that is read here")
    vocab, types = _numbered(raw)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if "ByteLevel" in json.dumps([raw.get("pre_tokenizer"), raw.get("decoder")]):
        _check_plain(raw, notes)
        missing = [c for c in byte_characters() if c not in model["vocab"]]
        patterns = [
            # The reader keeps bytes that are no token apart, by itself.
            *(p for p in _patterns(raw.get("pre_tokenizer")) if p != _apart(missing))
        ]
        name = _pre_name(tuple(patterns), bool(model.get("ignore_merges")))
        return vocab, types, {"model": "gpt2", "pre": name, "merges": merges}
    return vocab, *_scored(raw, vocab, types, merges)


def _check_plain(raw: Mapping[str, Any], notes: list[str]) -> None:
    """Byte-level BPE reads a text as it stands, or after NFC."""
    normalizer = raw.get("normalizer")
    if normalizer is None:
        return
    if normalizer.get("type") != "NFC":
        raise _UnsaidError(f"its normalizer {normalizer.get('type')} is not one of GGUF's")
    notes.append("texts are not made NFC there, as no GGUF file says it: compose accents yourself")


def _numbered(raw: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens by id, and their types."""
    by_id = {number: token for token, number in raw["model"]["vocab"].items()}
    unk = raw["model"].get("unk_token")
    added = {token["id"]: token for token in raw.get("added_tokens") or ()}
    by_id |= {number: token["content"] for number, token in added.items()}
    tokens, types = [], []
    for number in range(max(by_id) + 1):
        token = by_id.get(number)
        tokens.append(f"[PAD{number}]" if token is None else token)
        if token is None:
            types.append(_UNUSED)
        elif token == unk:
            types.append(_UNKNOWN)
        elif number in added:
            types.append(_CONTROL if added[number]["special"] else _USER_DEFINED)
        elif _BYTE_PIECE.fullmatch(token) and raw["model"].get("byte_fallback"):
            types.append(_BYTE)
        else:
            types.append(_NORMAL)
    return tokens, types


def _scored(
    raw: Mapping[str, Any], tokens: list[str], types: list[int], merges: Sequence[str]
) -> tuple[list[int], dict[str, Any]]:
    """Sentencepiece's BPE: a piece's score is the rank of the first merge that makes it."""
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), -float(rank + 1))
    last = -float(len(merges) + 1)
    scores = [ranks.get(t, last) if types[i] == _NORMAL else 0.0 for i, t in enumerate(tokens)]
    text = json.dumps([raw.get("normalizer"), raw.get("pre_tokenizer")], ensure_ascii=False)
    if SPACE not in text:
        raise _UnsaidError("it is BPE without bytes and without sentencepiece's sign for a space")
    prepends = '"Prepend"' in text or '"prepend_scheme": "always"' in text
    prepends |= '"prepend_scheme": "first"' in text
    return types, {"model": "llama", "scores": scores, "add_space_prefix": prepends}


def _of_words(raw: Mapping[str, Any]) -> tuple[list[str], list[int], dict[str, Any]]:
    """GGUF marks the pieces that begin a word, BERT's own files those that do not."""
    tokens, types = _numbered(raw)
    if raw["model"].get("continuing_subword_prefix") != "##":
        raise _UnsaidError("its pieces inside a word do not begin with ##")
    normalizer = raw.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        raise _UnsaidError(f"its normalizer {normalizer.get('type')} is not BERT's")
    found: dict[str, Any] = {"model": "bert"}
    lowercase, strip = normalizer.get("lowercase", True), normalizer.get("strip_accents")
    if not lowercase:
        found["normalizer.lowercase"] = False
    if strip is not None and strip != lowercase:
        found["normalizer.strip_accents"] = strip
    return [_as_gguf(token) for token in tokens], types, found


def _as_gguf(token: str) -> str:
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else SPACE + token


def _apart(missing: Sequence[str]) -> str | None:
    return apart(missing)["pattern"]["Regex"] if missing else None


def _pre_name(patterns: tuple[str, ...], ignore_merges: bool) -> str:
    """The name of the way in which a text is cut.

    Raises:
      _UnsaidError: llama.cpp has none for it.
    """
    for name, kind in TABLE.items():
        if kind.patterns == patterns and kind.ignore_merges == ignore_merges:
            return name
    raise _UnsaidError(f"llama.cpp has no name for cutting texts by {patterns}")


def _patterns(pre_tokenizer: Any) -> list[str]:
    """The regular expressions that it cuts by, one after the other."""
    if pre_tokenizer is None:
        return []
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return [p for part in pre_tokenizer["pretokenizers"] for p in _patterns(part)]
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return [pattern_of_gpt2()] if pre_tokenizer.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if pre_tokenizer.get("individual_digits") else r"\p{N}+"]
    pattern = pre_tokenizer.get("pattern") or {}
    is_plain = pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert")
    if kind == "Split" and "Regex" in pattern and is_plain:
        return [pattern["Regex"]]
    raise _UnsaidError(f"its pre-tokenizer {kind} is not one of GGUF's")
