"""Tokenizers of Hugging Face folders from before `tokenizer.json`.

Each becomes one: GPT-2's two files, BERT's list of pieces, a sentencepiece model. What a class of
transformers adds by itself is kept in a table here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llmasos_jax.errors import FormatError, TokenizerError, did_you_mean
from llmasos_jax.format.strict import shown
from llmasos_jax.interop import tokenizerjson
from llmasos_jax.interop.gguf.pretokenizers import pre_tokenizer
from llmasos_jax.interop.hf.files import MAX_TOKENIZER_BYTES, read_bounded, read_object
from llmasos_jax.interop.tokenizerjson import SPACE, Added

Parsed = tuple[Any, str, dict[str, Any]]  # tokenizers.Tokenizer, its JSON, what its class has
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_REMEDY = (
    "make a tokenizer.json with transformers: "
    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)
_GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_ROBERTA = {
    **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    **{"mask_token": "<mask>", "add_bos_token": True},
}
_QWEN2 = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_BERT = {
    **{"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"},
    **{"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "add_bos_token": True},
}
# By the class in tokenizer_config.json or the model_type in config.json: what the class has, and
# how it cuts a text.
_BYTE_LEVEL: dict[str, tuple[dict[str, Any], str]] = {
    **dict.fromkeys(("GPT2Tokenizer", "CodeGenTokenizer"), (_GPT2, "gpt-2")),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "codegen", "phi"), (_GPT2, "gpt-2")),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "roberta", "bart"), (_ROBERTA, "gpt-2")),
    "opt": ({**_GPT2, "bos_token": "</s>", "eos_token": "</s>", "add_bos_token": True}, "gpt-2"),
    **dict.fromkeys(("Qwen2Tokenizer", "qwen2", "qwen2_moe", "qwen3"), (_QWEN2, "qwen2")),
}


def older_tokenizer(folder: Path) -> Callable[[], Parsed] | None:
    """What makes the tokenizer of a folder without `tokenizer.json`; None if it has none.

    Raises:
      TokenizerError: the folder's tokenizer is of a kind that is not read here.
    """
    kinds = {"tokenizer.model": _sentencepiece, "vocab.json": _byte_level, "vocab.txt": _words}
    for name, make in kinds.items():
        if (folder / name).is_file():
            return partial(make, folder)
    for name in ("spiece.model", "sentencepiece.bpe.model", "tekken.json"):
        if (folder / name).is_file():
            raise TokenizerError(f"{folder} has a {name} and no tokenizer.json; {_REMEDY}")
    return None


def _byte_level(folder: Path) -> Parsed:
    config = read_object(folder / "tokenizer_config.json")
    kind = config.get("tokenizer_class") or read_object(folder / "config.json").get("model_type")
    if read_object(folder / "config.json").get("model_type") == "opt":
        kind = "opt"  # its class is GPT-2's
    name = str(kind).removesuffix("Fast") if kind is not None else "gpt2"
    if name not in _BYTE_LEVEL:
        raise TokenizerError(
            f'{folder}: how a "{shown(name)}" cuts texts is not known here; {_REMEDY}'
            f"{did_you_mean(name, _BYTE_LEVEL)}"
        )
    usual, cut = _BYTE_LEVEL[name]
    vocab = _ids(read_object(folder / "vocab.json", MAX_TOKENIZER_BYTES), folder / "vocab.json")
    prefix = config.get("add_prefix_space", False) is True
    parts = tokenizerjson.byte_level_bpe(
        vocab,
        _merges(folder / "merges.txt"),
        tokenizerjson.splits(pre_tokenizer(cut).patterns, add_prefix_space=prefix),
        normalizer={"type": "NFC"} if cut == "qwen2" else None,
    )
    text, tokenizer = tokenizerjson.parsed(parts, _special(vocab, {**usual, **config}))
    return tokenizer, text, dict(usual)


def _words(folder: Path) -> Parsed:
    config = {**_BERT, **read_object(folder / "tokenizer_config.json")}
    tokens = _lines(folder / "vocab.txt")
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise TokenizerError(f"{folder / 'vocab.txt'} has a piece twice; expected each once")
    unk = _content(config["unk_token"])
    if unk not in vocab:
        raise TokenizerError(
            f'{folder / "vocab.txt"} has no "{shown(unk)}"; expected BERT\'s pieces'
        )
    accents = config.get("strip_accents")
    parts = tokenizerjson.wordpiece(
        vocab,
        unk,
        lowercase=config.get("do_lower_case", True) is True,
        strip_accents=accents if isinstance(accents, bool) else None,
        chinese_chars=config.get("tokenize_chinese_chars", True) is True,
    )
    text, tokenizer = tokenizerjson.parsed(parts, _special(vocab, config))
    return tokenizer, text, dict(_BERT)


def _sentencepiece(folder: Path) -> Parsed:
    path = folder / "tokenizer.model"
    proto = _read_model(path)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise TokenizerError(f"{path} is a sentencepiece model of another kind than BPE; {_REMEDY}")
    rules = proto.normalizer_spec
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces:
        raise TokenizerError(f"{path} rewrites characters or spaces of a text; {_REMEDY}")
    normal, unknown, control, user = 1, 2, 3, 4  # sentencepiece's numbers
    if rules.add_dummy_prefix and any(p.type == user for p in proto.pieces):
        raise TokenizerError(
            f"{path} has user-defined pieces and begins texts with a space, which is put in front "
            f"of the text alone; {_REMEDY}"
        )
    # User-defined pieces are looked for in the text as it is, where a space is a space.
    names = [p.piece.replace(SPACE, " ") if p.type == user else p.piece for p in proto.pieces]
    vocab = {name: number for number, name in enumerate(names)}
    if len(vocab) != len(names) or not vocab:
        raise TokenizerError(f"{path} has a piece twice, or none; expected each once")
    scores = {p.piece: p.score for p in proto.pieces if p.type == normal}
    added = [
        Added(name, number, piece.type != user)
        for number, (name, piece) in enumerate(zip(names, proto.pieces, strict=True))
        if piece.type in (unknown, control, user)
    ]
    # With "legacy": false, transformers puts a space only where the whole text begins.
    config = read_object(folder / "tokenizer_config.json")
    parts = tokenizerjson.scored_bpe(
        vocab,
        scores,
        next((p.piece for p in proto.pieces if p.type == unknown), None),
        add_space_prefix=rules.add_dummy_prefix and config.get("add_prefix_space") is not False,
        prefix_everywhere=config.get("legacy") is not False,
    )
    text, tokenizer = tokenizerjson.parsed(parts, added)
    spec = proto.trainer_spec
    usual = {
        "bos_token": proto.pieces[spec.bos_id].piece if spec.bos_id >= 0 else None,
        "eos_token": proto.pieces[spec.eos_id].piece if spec.eos_id >= 0 else None,
        "add_bos_token": spec.bos_id >= 0,
    }
    return tokenizer, text, usual


def _read_model(path: Path) -> Any:
    raw = read_bounded(path, MAX_TOKENIZER_BYTES)
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise TokenizerError(
            f"reading {path} needs protobuf (pip install protobuf), or {_REMEDY}"
        ) from error
    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        proto.ParseFromString(raw)
        ids = (proto.trainer_spec.bos_id, proto.trainer_spec.eos_id)
    except Exception as error:
        raise TokenizerError(f"{path} is not a sentencepiece model; {_REMEDY}") from error
    if not proto.pieces or max(ids) >= len(proto.pieces):
        raise TokenizerError(f"{path} is not a whole sentencepiece model; get it again")
    return proto


def _special(vocab: Mapping[str, int], config: Mapping[str, Any]) -> list[Added]:
    """The named special tokens that the vocabulary has; a mask takes the space before it along."""
    found: dict[str, Added] = {}
    for name in _NAMES:
        content = _content(config.get(f"{name}_token"))
        if content in vocab and content not in found:
            lstrip = name == "mask" and content == "<mask>"
            found[content] = Added(content, vocab[content], special=True, lstrip=lstrip)
    return list(found.values())


def _content(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _ids(found: Mapping[str, Any], path: Path) -> dict[str, int]:
    for token, number in found.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**24:
            raise TokenizerError(f'{path}: "{shown(token)}" has the id {shown(number)}')
    return dict(found)


def _merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for line in _lines(path):
        if line.startswith("#version") or not line.strip():
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise TokenizerError(f'{path} has the line "{shown(line)}"; expected two tokens')
        merges.append((left, right))
    return merges


def _lines(path: Path) -> list[str]:
    try:
        text = read_bounded(path, MAX_TOKENIZER_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text; get it again") from error
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
