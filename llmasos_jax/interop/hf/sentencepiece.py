"""Sentencepiece models of Hugging Face folders, as a `tokenizer.json`.

BPE models (Llama 1 and 2, Mistral) and unigram models (T5, XLM-RoBERTa). What a class of
transformers does to the ids of the file is done here too: T5 has sentinels behind them, and
XLM-RoBERTa has the first ids in fairseq's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.errors import TokenizerError
from llmasos_jax.format.strict import shown
from llmasos_jax.interop import tokenizerjson
from llmasos_jax.interop.hf.charsmap import check_charsmap
from llmasos_jax.interop.hf.files import MAX_TOKENIZER_BYTES, read_bounded, read_object
from llmasos_jax.interop.tokenizerjson import SPACE, Added

Parsed = tuple[Any, str, dict[str, Any]]  # tokenizers.Tokenizer, its JSON, what its class has
FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
REMEDY = (
    "make a tokenizer.json with transformers: "
    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5  # sentencepiece's numbers
# The class, or the model_type where no class is named, by what is done to the file's ids.
_T5 = frozenset(
    ("T5Tokenizer", "MT5Tokenizer", "t5", "mt5", "umt5", "longt5", "switch_transformers")
)
_FAIRSEQ = frozenset(("XLMRobertaTokenizer", "xlm-roberta", "xlm-roberta-xl"))
_EXTRA_IDS = 100
_MOST_EXTRA_IDS = 10_000


def sentencepiece_tokenizer(path: Path) -> Parsed:
    """The tokenizer of a sentencepiece file and of what stands beside it.

    Raises:
      TokenizerError: the file is damaged, or does something that is not known here.
      FormatError: a file beside it cannot be read.
    """
    proto = read_proto(path)
    if proto.trainer_spec.model_type == proto.trainer_spec.BPE:
        return _bpe(path, proto)
    if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM:
        return _unigram(path, proto)
    raise TokenizerError(
        f"{path} is a sentencepiece model of another kind than BPE and unigram; {REMEDY}"
    )


def _bpe(path: Path, proto: Any) -> Parsed:
    folder = path.parent
    kind = _kind(folder, read_object(folder / "tokenizer_config.json"))
    if path.name != FILES[0] or kind in _T5 | _FAIRSEQ:
        raise TokenizerError(f'{path}: a BPE model of a "{shown(kind)}" is not known; {REMEDY}')
    rules = proto.normalizer_spec
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces:
        raise TokenizerError(f"{path} rewrites characters or spaces of a text; {REMEDY}")
    if rules.add_dummy_prefix and any(p.type == _USER for p in proto.pieces):
        raise TokenizerError(
            f"{path} has user-defined pieces and begins texts with a space, which is put in front "
            f"of the text alone; {REMEDY}"
        )
    # User-defined pieces are looked for in the text as it is, where a space is a space.
    names = [p.piece.replace(SPACE, " ") if p.type == _USER else p.piece for p in proto.pieces]
    vocab = _numbered(names, path)
    scores = {p.piece: p.score for p in proto.pieces if p.type == _NORMAL}
    added = [
        Added(name, number, piece.type != _USER)
        for number, (name, piece) in enumerate(zip(names, proto.pieces, strict=True))
        if piece.type in (_UNKNOWN, _CONTROL, _USER)
    ]
    # With "legacy": false, transformers puts a space only where the whole text begins.
    config = read_object(folder / "tokenizer_config.json")
    parts = tokenizerjson.scored_bpe(
        vocab,
        scores,
        next((p.piece for p in proto.pieces if p.type == _UNKNOWN), None),
        add_space_prefix=rules.add_dummy_prefix and config.get("add_prefix_space") is not False,
        prefix_everywhere=config.get("legacy") is not False,
    )
    text, tokenizer = tokenizerjson.parsed(parts, added)
    return tokenizer, text, _usual(proto)


def _unigram(path: Path, proto: Any) -> Parsed:
    rules = proto.normalizer_spec
    check_charsmap(rules.precompiled_charsmap, path)
    unused = [p.piece for p in proto.pieces if p.type == _UNUSED]
    if unused or not rules.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        what = f'the unused piece "{shown(unused[0])}"' if unused else "spaces of its own kind"
        raise TokenizerError(f"{path} has {what}, which is not known here; {REMEDY}")
    config = read_object(path.with_name("tokenizer_config.json"))
    pieces = [(p.piece, float(p.score)) for p in proto.pieces]
    special = {p.piece for p in proto.pieces if p.type in (_UNKNOWN, _CONTROL)}
    user = {p.piece for p in proto.pieces if p.type == _USER}
    kind = _kind(path.parent, config)
    usual = _usual(proto)
    if kind in _FAIRSEQ:
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:]]
        pieces.append(("<mask>", 0.0))
        special = {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
        usual = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        usual |= {"mask_token": "<mask>", "unk_token": "<unk>", "add_bos_token": True}
    elif kind in _T5:
        names = _extra_names(config, path, {piece for piece, _ in pieces})
        pieces += [(name, 0.0) for name in names]
        special |= set(names)
        usual |= {"pad_token": "<pad>", "add_bos_token": False}
    elif user or path.name != FILES[0]:
        raise TokenizerError(f'{path}: the ids of a "{shown(kind)}" are not known here; {REMEDY}')
    vocab = _numbered([piece for piece, _ in pieces], path)
    if user and rules.add_dummy_prefix:
        raise TokenizerError(
            f"{path} has user-defined pieces and begins texts with a space, which is put in front "
            f"of the text alone; {REMEDY}"
        )
    unk = next(p.piece for p in proto.pieces if p.type == _UNKNOWN)
    parts = tokenizerjson.unigram(
        pieces,
        vocab[unk],
        charsmap=rules.precompiled_charsmap,
        add_space_prefix=rules.add_dummy_prefix,
        squeeze=rules.remove_extra_whitespaces,
    )
    parts["post_processor"] = _template(kind, vocab)
    text, tokenizer = tokenizerjson.parsed(parts, _added(vocab, special, user))
    return tokenizer, text, usual


def _added(vocab: Mapping[str, int], special: set[str], user: set[str]) -> list[Added]:
    # A mask takes the space before it along, as RoBERTa's does.
    return [
        Added(piece, number, piece in special, lstrip=piece == "<mask>" and piece in special)
        for piece, number in vocab.items()
        if piece in special | user
    ]


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    named = config.get("tokenizer_class") or read_object(folder / "config.json").get("model_type")
    return str(named).removesuffix("Fast") if named is not None else "sentencepiece model"


def _extra_names(config: Mapping[str, Any], path: Path, known: set[str]) -> list[str]:
    """T5's sentinels that stand behind the pieces; <extra_id_0> has the last id."""
    count = config.get("extra_ids", _usual_extra_ids(path.parent, len(known)))
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_EXTRA_IDS:
        raise TokenizerError(
            f"{path.with_name('tokenizer_config.json')}: extra_ids = {shown(count)} must be a "
            f"whole number from 0 to {_MOST_EXTRA_IDS}"
        )
    names = [f"<extra_id_{number}>" for number in reversed(range(count))]
    return [name for name in names if name not in known]


def _usual_extra_ids(folder: Path, num_pieces: int) -> int:
    """T5's own hundred, or as many as the model has rows for."""
    num_ids = read_object(folder / "config.json").get("vocab_size")
    if not isinstance(num_ids, int) or isinstance(num_ids, bool):
        return _EXTRA_IDS
    return min(_EXTRA_IDS, max(0, num_ids - num_pieces))


def _template(kind: str, vocab: Mapping[str, int]) -> dict[str, Any] | None:
    """What encoders read: T5 `a </s> b </s>`, XLM-RoBERTa `<s> a </s></s> b </s>`."""
    end = "</s>"
    if end not in vocab or kind not in _T5 | _FAIRSEQ:
        return None
    ends: list[tuple[str, int]] = [(end, vocab[end])]
    single: list[dict[str, Any]] = [_part("Sequence", "A"), _part("SpecialToken", end)]
    second = [_part("Sequence", "B"), _part("SpecialToken", end)]
    if kind in _FAIRSEQ:
        ends.append(("<s>", vocab["<s>"]))
        single.insert(0, _part("SpecialToken", "<s>"))
        second.insert(0, _part("SpecialToken", end))
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in ends}
    return {
        **{"type": "TemplateProcessing", "single": single, "pair": single + second},
        "special_tokens": special,
    }


def _part(role: str, name: str) -> dict[str, Any]:
    return {role: {"id": name, "type_id": 0}}


def _usual(proto: Any) -> dict[str, Any]:
    spec = proto.trainer_spec
    return {
        "bos_token": proto.pieces[spec.bos_id].piece if spec.bos_id >= 0 else None,
        "eos_token": proto.pieces[spec.eos_id].piece if spec.eos_id >= 0 else None,
        "add_bos_token": spec.bos_id >= 0,
    }


def _numbered(names: Sequence[str], path: Path) -> dict[str, int]:
    vocab = {name: number for number, name in enumerate(names)}
    if len(vocab) != len(names) or not vocab:
        raise TokenizerError(f"{path} has a piece twice, or none; expected each once")
    return vocab


def read_proto(path: Path) -> Any:
    """A `.model` file as sentencepiece's ModelProto.

    Raises:
      TokenizerError: it is none, or damaged.
      FormatError: it cannot be read.
    """
    raw = read_bounded(path, MAX_TOKENIZER_BYTES)
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise TokenizerError(
            f"reading {path} needs protobuf (pip install protobuf), or {REMEDY}"
        ) from error
    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        proto.ParseFromString(raw)
        ids = (proto.trainer_spec.bos_id, proto.trainer_spec.eos_id)
    except Exception as error:
        raise TokenizerError(f"{path} is not a whole sentencepiece model; get it again") from error
    is_whole = proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
    if not is_whole or not proto.pieces or max(ids) >= len(proto.pieces):
        raise TokenizerError(f"{path} is not a whole sentencepiece model; get it again")
    unknown = sum(p.type == _UNKNOWN for p in proto.pieces)
    if unknown != 1 or not all(math.isfinite(p.score) and p.piece for p in proto.pieces):
        raise TokenizerError(
            f"{path} has {unknown} unknown pieces, an empty one, or a score that is no number; "
            "expected one unknown piece: get the file again"
        )
    return proto
