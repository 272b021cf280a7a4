"""A GGUF file's tokenizer, made again from its metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import TokenizerError, did_you_mean
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tokenizerfiles import TokenizerFiles
from llmasos_jax.interop import tokenizerjson
from llmasos_jax.interop.built import BuiltTokenizer
from llmasos_jax.interop.gguf.pretokenizers import pre_tokenizer
from llmasos_jax.interop.tokenizerjson import SPACE, Added, Ends

_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
# Control tokens that end a text, whatever the file calls them; llama.cpp goes by these names too.
_END_NAMES = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>"),
    *("</s>", "<|eom_id|>", "<EOT>", "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>"),
)
_MOST_ENDS = 64


def rebuild(metadata: Mapping[str, Any]) -> TokenizerFiles | None:
    """The tokenizer that a GGUF file's metadata describes; None if it describes none.

    Args:
      metadata: values by key; arrays are lists or NumPy arrays.

    Returns:
      The tokenizer, made when it is loaded; loading raises `TokenizerError` alone.

    Raises:
      TokenizerError: its kind, or the way it cuts texts, is not known here.
    """
    kind = metadata.get(f"{_KEY}model")
    if kind is None or (isinstance(kind, str) and kind in ("none", "no_vocab")):
        return None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise TokenizerError(
            f'tokenizer.ggml.model = "{shown(kind)}" is not known here'
            f"{did_you_mean(shown(kind), _KINDS)}"
        )
    if kind == "gpt2":
        _pre(metadata)
    return BuiltTokenizer(partial(_make, metadata, _KINDS[kind]))


def end_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a generated text: eos, end of turn, and control tokens known to be that.

    Raises:
      TokenizerError: an id is none of the vocabulary.

    Example:
      >>> end_ids({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "<|im_end|>"],
      ...          "tokenizer.ggml.token_type": [1, 3], "tokenizer.ggml.pre": "smollm"})
      (1,)
    """
    kind = metadata.get(f"{_KEY}model")
    if not isinstance(kind, str) or kind not in _KINDS:
        return ()
    vocabulary = _read(metadata)
    names = {name for name in _END_NAMES if vocabulary.is_special(name)}
    if {"<|return|>", "<|call|>"} <= vocabulary.ids.keys():
        names.discard("<|end|>")  # there it only ends a part of an answer
    found = {vocabulary.ids[name] for name in names}
    for key in ("eos", "eot", "eom"):
        number = _token_id(metadata, f"{key}_token_id", vocabulary)
        found |= set() if number is None else {number}
    return tuple(sorted(found))[:_MOST_ENDS]


@dataclass(frozen=True)
class _Vocabulary:
    """Tokens by id, their ids and types (1 normal, 2 unknown, 3 control, 4 user-defined, ...)."""

    tokens: list[str]
    ids: dict[str, int]
    types: list[int]

    def is_special(self, token: str) -> bool:
        return token in self.ids and self.types[self.ids[token]] in (_UNKNOWN, _CONTROL)

    def of_type(self, *kinds: int) -> list[int]:
        return [i for i, kind in enumerate(self.types) if kind in kinds]


def _make(metadata: Mapping[str, Any], build: Callable[..., Tokenizer]) -> Tokenizer:
    return build(metadata, _read(metadata))


def _byte_level(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> Tokenizer:
    pre = _pre(metadata)
    merges = []
    for merge in _strings(metadata, "merges"):
        # No token has a space in it: it would be written as another character.
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise TokenizerError(
                f'tokenizer.ggml.merges has "{shown(merge)}"; expected two tokens and a space'
            )
        merges.append((left, right))
    cuts = tokenizerjson.splits(pre.patterns)
    # A byte without a token is left out. In llama.cpp what stood around it does not become
    # neighbours by that, in the tokenizers library it would.
    missing = [c for c in tokenizerjson.byte_characters() if c not in vocabulary.ids]
    if missing:
        cuts["pretokenizers"].append(tokenizerjson.apart(missing))
    parts = tokenizerjson.byte_level_bpe(
        vocabulary.ids,
        merges,
        cuts,
        ignore_merges=pre.ignore_merges,
    )
    ends = _ends(metadata, vocabulary, pre.adds_bos, bos=None, eos=None)
    return tokenizerjson.opened(parts, _added(metadata, vocabulary), ends)


def _by_scores(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> Tokenizer:
    values = _numbers(metadata, "scores", len(vocabulary.tokens))
    normal = {vocabulary.tokens[i]: values[i] for i in vocabulary.of_type(_NORMAL)}
    unk_id = _token_id(metadata, "unknown_token_id", vocabulary, default=0)
    parts = tokenizerjson.scored_bpe(
        vocabulary.ids,
        normal,
        None if unk_id is None else vocabulary.tokens[unk_id],
        add_space_prefix=_flag(metadata, "add_space_prefix", True),
    )
    ends = _ends(metadata, vocabulary, True, bos=1, eos=2)
    return tokenizerjson.opened(parts, _added(metadata, vocabulary), ends)


def _words(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> Tokenizer:
    """GGUF marks the pieces that begin a word, BERT's own files those that do not."""
    tokens = [_as_bert(token) for token in vocabulary.tokens]
    ids = _numbered(tokens)
    unk_id = _token_id(metadata, "unknown_token_id", vocabulary, default=100)
    if unk_id is None:
        raise TokenizerError("tokenizer.ggml.unknown_token_id is missing; WordPiece needs one")
    lowercase = _flag(metadata, "normalizer.lowercase", True)
    parts = tokenizerjson.wordpiece(
        ids,
        tokens[unk_id],
        lowercase=lowercase,
        strip_accents=_flag(metadata, "normalizer.strip_accents", lowercase),
    )
    bos_id = _token_id(metadata, "cls_token_id", vocabulary, default=101)
    eos_id = _token_id(metadata, "seperator_token_id", vocabulary, default=102)  # so spelt there
    ends = _ends(metadata, vocabulary, True, bos=bos_id, eos=eos_id, adds_eos=True)
    return tokenizerjson.opened(parts, _added(metadata, vocabulary), ends)


# By `tokenizer.ggml.model`.
_KINDS: dict[str, Callable[[Mapping[str, Any], _Vocabulary], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _by_scores,
    "bert": _words,
}


def _as_bert(token: str) -> str:
    if token.startswith(SPACE):
        return token[len(SPACE) :]
    return token if token.startswith("[") and token.endswith("]") else f"##{token}"


def _pre(metadata: Mapping[str, Any]) -> Any:
    name = metadata.get(f"{_KEY}pre")
    if not isinstance(name, str):
        raise TokenizerError(
            "tokenizer.ggml.pre is missing, so nothing says how a text is cut; convert the model "
            "to GGUF again with a newer program"
        )
    return pre_tokenizer(name)


def _read(metadata: Mapping[str, Any]) -> _Vocabulary:
    tokens = [
        token or f"[EMPTY_{number}]" for number, token in enumerate(_strings(metadata, "tokens"))
    ]
    kinds = [_NORMAL] * len(tokens)
    if f"{_KEY}token_type" in metadata:
        kinds = [int(kind) for kind in _numbers(metadata, "token_type", len(tokens))]
    ids = _numbered(tokens)
    for name in _END_NAMES:
        if name in ids and kinds[ids[name]] == _NORMAL and name != "</s>":
            kinds[ids[name]] = _CONTROL
    return _Vocabulary(tokens, ids, kinds)


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        number, twice = next((i, t) for i, t in enumerate(tokens) if ids[t] != i)
        raise TokenizerError(
            f'tokenizer.ggml.tokens has "{shown(twice)}" as {number} and as {ids[twice]}; expected '
            "each token once"
        )
    if not ids:
        raise TokenizerError("tokenizer.ggml.tokens is empty; expected a vocabulary")
    return ids


def _added(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> list[Added]:
    """What is found in a text first. Phi-3's take the white space behind them along."""
    name = str(metadata.get("general.name", "")).lower()
    strips = "phi-3" in name or "phi3" in name
    kept = ("<unk>", "<s>", "<|endoftext|>")
    tokens = vocabulary.tokens
    if metadata[f"{_KEY}model"] == "bert":
        tokens = [_as_bert(token) for token in tokens]
    return [
        Added(
            tokens[i],
            i,
            vocabulary.types[i] != _USER_DEFINED,
            rstrip=strips and tokens[i] not in kept,
        )
        for i in vocabulary.of_type(_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _ends(
    metadata: Mapping[str, Any],
    vocabulary: _Vocabulary,
    adds_bos: bool,
    *,
    bos: int | None,
    eos: int | None,
    adds_eos: bool = False,
) -> Ends:
    bos_id = _token_id(metadata, "bos_token_id", vocabulary, default=bos)
    eos_id = _token_id(metadata, "eos_token_id", vocabulary, default=eos)
    adds_bos = _flag(metadata, "add_bos_token", adds_bos)
    adds_eos = _flag(metadata, "add_eos_token", adds_eos)
    for name, adds, number in (("bos", adds_bos, bos_id), ("eos", adds_eos, eos_id)):
        if adds and number is None:
            raise TokenizerError(
                f"tokenizer.ggml.add_{name}_token is true, but there is no {name}_token_id; the "
                "file is damaged or of an unknown kind"
            )
    return Ends(bos_id, eos_id, adds_bos, adds_eos)


def _token_id(
    metadata: Mapping[str, Any], key: str, vocabulary: _Vocabulary, default: int | None = None
) -> int | None:
    """An id that the file gives, or the kind's usual one if the vocabulary is that long."""
    found = metadata.get(_KEY + key)
    if found is None:
        return default if default is not None and default < len(vocabulary.tokens) else None
    if isinstance(found, bool) or not isinstance(found, (int, np.integer)):
        raise TokenizerError(f"tokenizer.ggml.{key} = {shown(found)} is not a whole number")
    if not 0 <= found < len(vocabulary.tokens):
        # Some files write 2^32 - 1 for "none".
        if int(found) in (-1, 2**32 - 1):
            return None
        raise TokenizerError(
            f"tokenizer.ggml.{key} = {found} is none of the {len(vocabulary.tokens)} tokens"
        )
    return int(found)


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    found = metadata.get(_KEY + key, default)
    if not isinstance(found, (bool, np.bool_)):
        raise TokenizerError(f"tokenizer.ggml.{key} = {shown(found)} is not true or false")
    return bool(found)


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> list[float]:
    """An array with one number for each token."""
    try:
        found = np.asarray(metadata.get(_KEY + key), dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TokenizerError(f"tokenizer.ggml.{key} are not numbers; expected an array") from error
    if found.shape != (count,):
        raise TokenizerError(
            f"tokenizer.ggml.{key} has {found.size if found.ndim else 0} numbers for {count} "
            "tokens; expected one for each"
        )
    if not np.isfinite(found).all():
        raise TokenizerError(f"tokenizer.ggml.{key} has a number that is not finite")
    return found.tolist()


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(_KEY + key)
    if not isinstance(found, (list, tuple)) or not all(isinstance(text, str) for text in found):
        raise TokenizerError(
            f"tokenizer.ggml.{key} is {'missing' if found is None else 'not a list of strings'}; "
            "expected a list of strings"
        )
    return list(found)
