"""Tokenizers of Hugging Face folders from before `tokenizer.json`.

Each becomes one: GPT-2's two files, BERT's list of pieces, a sentencepiece model
(`sentencepiece.py`). What a class of
transformers adds by itself is kept in a table here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llmasos_jax.data.tokenizers.wordpiece import SPECIAL, bert_tokenizer, vocabulary_file
from llmasos_jax.errors import FormatError, TokenizerError, did_you_mean
from llmasos_jax.format.strict import shown
from llmasos_jax.interop import tokenizerjson
from llmasos_jax.interop.gguf.pretokenizers import pre_tokenizer
from llmasos_jax.interop.hf.files import MAX_TOKENIZER_BYTES, read_bounded, read_object
from llmasos_jax.interop.hf.sentencepiece import FILES as SENTENCEPIECE_FILES
from llmasos_jax.interop.hf.sentencepiece import REMEDY as _REMEDY
from llmasos_jax.interop.hf.sentencepiece import Parsed, sentencepiece_tokenizer
from llmasos_jax.interop.tokenizerjson import Added

_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
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
_ENCODERS = frozenset(("bert", "distilbert"))
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
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            return partial(sentencepiece_tokenizer, folder / name)
    for name, make in {"vocab.json": _byte_level, "vocab.txt": _words}.items():
        if (folder / name).is_file():
            return partial(make, folder)
    if (folder / "tekken.json").is_file():
        raise TokenizerError(f"{folder} has a tekken.json and no tokenizer.json; {_REMEDY}")
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
    if usual is _ROBERTA:
        parts["post_processor"] = _roberta_template(vocab, {**usual, **config}, prefix)
    text, tokenizer = tokenizerjson.parsed(parts, _special(vocab, {**usual, **config}))
    return tokenizer, text, dict(usual)


def _roberta_template(
    vocab: Mapping[str, int], config: Mapping[str, Any], add_prefix_space: bool
) -> dict[str, Any] | None:
    """<s> a </s></s> b </s>; None if the vocabulary has not both."""
    cls, sep = (_content(config.get(f"{name}_token")) for name in ("bos", "eos"))
    if cls not in vocab or sep not in vocab:
        return None
    return {
        **{"type": "RobertaProcessing", "sep": [sep, vocab[sep]], "cls": [cls, vocab[cls]]},
        **{"trim_offsets": True, "add_prefix_space": add_prefix_space},
    }


def _words(folder: Path) -> Parsed:
    path = folder / "vocab.txt"
    config = {**_BERT, **read_object(folder / "tokenizer_config.json")}
    if config.get("do_basic_tokenize", True) is not True:
        raise TokenizerError(
            f"{folder}: WordPiece with do_basic_tokenize off is not known here; {_REMEDY}"
        )
    special = {name: _content(config[f"{name}_token"]) for name in SPECIAL}
    vocab = vocabulary_file(read_bounded(path, MAX_TOKENIZER_BYTES), path)
    if read_object(folder / "config.json").get("model_type") in _ENCODERS:
        _check_frame(vocab, special, path)
    made = bert_tokenizer(
        vocab,
        path,
        lowercase=_flag(config, "do_lower_case", True, folder),
        strip_accents=_flag(config, "strip_accents", None, folder),
        chinese_chars=_flag(config, "tokenize_chinese_chars", True, folder),
        special=special,
    )
    return made, made.to_str(), dict(_BERT)


def _flag(config: Mapping[str, Any], key: str, default: bool | None, folder: Path) -> Any:
    """True or false, or null where that is the default."""
    found = config.get(key, default)
    if isinstance(found, bool) or found is default:
        return found
    kinds = "true, false or null" if default is None else "true or false"
    raise TokenizerError(
        f"{folder / 'tokenizer_config.json'}: {key} = {shown(found)} must be {kinds}"
    )


def _check_frame(vocab: Mapping[str, int], special: Mapping[str, str], path: Path) -> None:
    for name in ("cls", "sep"):
        if special[name] not in vocab:
            raise TokenizerError(
                f'{path} has no "{shown(special[name])}", which stands around every text of an '
                f"encoder; get the file again, or name its token as {name}_token in "
                "tokenizer_config.json"
            )


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
