"""The tokenizer and the chat template of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import FormatError, TokenizerError
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tokenizerfiles import TokenizerFiles
from llmasos_jax.interop.built import BuiltTokenizer
from llmasos_jax.interop.hf.files import (
    MAX_CONFIG_BYTES,
    MAX_TOKENIZER_BYTES,
    read_bounded,
    read_object,
)
from llmasos_jax.interop.hf.vocabulary import older_tokenizer

CONFIG = "tokenizer_config.json"
# The class of transformers that builds its tokenizer anew, without the template of the file; and
# the models that have it where no class is named.
_NO_TEMPLATE = "GPTNeoXTokenizer"
_NO_TEMPLATE_MODELS = frozenset(
    ("falcon_mamba", "gpt_neox", "mamba", "mamba2", "mpt", "olmo", "olmoe", "rwkv", "xlstm")
)


def folder_tokenizer_files(folder: Path) -> TokenizerFiles | None:
    """The tokenizer of a Hugging Face folder, made only when it is loaded; None if there is none.

    Args:
      folder: holds a `tokenizer.json`, or what came before it: a sentencepiece `tokenizer.model`,
        GPT-2's `vocab.json` and `merges.txt`, or BERT's `vocab.txt`. What begins and ends a text is
        taken from its `tokenizer_config.json` and `special_tokens_map.json`, and from the file.

    Raises:
      TokenizerError: the folder has a tokenizer of a kind that is not read here.
    """
    if (folder / "tokenizer.json").is_file():
        return BuiltTokenizer(lambda: finished(*_from_json(folder), folder, has_flags=False))
    if make := older_tokenizer(folder):
        return BuiltTokenizer(lambda: finished(*make(), folder))
    return None


def chat_template(folder: Path) -> str | None:
    """The chat template of a Hugging Face folder: Jinja text; None if it has none.

    `chat_template.jinja` goes before the one in `tokenizer_config.json`, and that one before the
    one in `chat_template.json`; of several the one that is called "default".

    Raises:
      FormatError: a file is too large, is not JSON, or the template is no text.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} is not UTF-8 text; repair it or take it away") from error
    for name in (CONFIG, "chat_template.json"):
        if (found := _template_in(folder / name)) is not None:
            return found
    return None


def _template_in(path: Path) -> str | None:
    found = read_object(path).get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        if len(named) != len(found):
            raise FormatError(
                f"{path}: chat_template is a list of other things than templates with "
                "different names"
            )
        found = named.get("default")
        if found is None and named:
            names = ", ".join(shown(str(name)) for name in named)
            raise FormatError(
                f'{path}: no chat template is called "default" (there are {names}); '
                'call one so, or put it into "chat_template.jinja"'
            )
    if found is not None and not isinstance(found, str):
        raise FormatError(f"{path}: chat_template = {shown(found)} must be a string")
    return found


def _from_json(folder: Path) -> tuple[Any, str, dict[str, Any]]:
    from llmasos_jax.data.tokenizers.huggingface import parse

    path = folder / "tokenizer.json"
    text, tokenizer = parse(read_bounded(path, MAX_TOKENIZER_BYTES), path)
    return tokenizer, text, {}


def finished(
    tokenizer: Any, text: str, usual: Mapping[str, Any], folder: Path, *, has_flags: bool = True
) -> Tokenizer:
    """Adds what the files beside a tokenizer say of it.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      text: its JSON.
      usual: what its class has where the files say nothing, in their words.
      folder: has `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, or
        some of them.
      has_flags: whether `add_bos_token` and `add_eos_token` count. Beside a `tokenizer.json` they
        do not: there its template decides, as in transformers 5.

    Raises:
      FormatError: one of these files cannot be read.
      TokenizerError: they contradict the tokenizer.
    """
    from llmasos_jax.data.tokenizers.huggingface import (
        BOS_NAMES,
        EOS_NAMES,
        MASK_NAMES,
        PAD_NAMES,
        HuggingFaceTokenizer,
        first_special_id,
    )

    config = read_object(folder / CONFIG)
    if _add_tokens(tokenizer, config, folder):
        text = tokenizer.to_str()
    said = {**usual, **read_object(folder / "special_tokens_map.json"), **config}
    bos_id = _special_id(tokenizer, said, "bos_token", BOS_NAMES)
    eos_id = _special_id(tokenizer, said, "eos_token", EOS_NAMES)
    flags = ("add_bos_token", "add_eos_token")
    if has_flags and any(isinstance(said.get(key), bool) for key in flags):
        adds_bos = said.get("add_bos_token") is True and bos_id is not None
    elif not has_flags and _ignores_template(config, folder):
        adds_bos = False
    else:
        begins = first_special_id(tokenizer)
        adds_bos = begins is not None
        bos_id = begins if begins is not None else bos_id
    return HuggingFaceTokenizer(
        text,
        bos_id=bos_id,
        eos_id=eos_id,
        adds_bos=adds_bos,
        mask_id=_special_id(tokenizer, said, "mask_token", MASK_NAMES),
        pad_id=_special_id(tokenizer, said, "pad_token", PAD_NAMES),
        parsed=tokenizer,
    )


def _ignores_template(config: Mapping[str, Any], folder: Path) -> bool:
    name = config.get("tokenizer_class")
    if isinstance(name, str):
        return name.removesuffix("Fast") == _NO_TEMPLATE
    return read_object(folder / "config.json").get("model_type") in _NO_TEMPLATE_MODELS


def _add_tokens(tokenizer: Any, config: Mapping[str, Any], folder: Path) -> bool:
    """Adds the tokens that only the files beside know; returns whether there were any."""
    import tokenizers

    listed: dict[int, tokenizers.AddedToken] = {}
    for name, number in read_object(folder / "added_tokens.json").items():
        if isinstance(number, int):
            listed[number] = tokenizers.AddedToken(name, normalized=False)
    decoder = config.get("added_tokens_decoder") or {}
    for key, token in decoder.items() if isinstance(decoder, dict) else ():
        content = token.get("content") if isinstance(token, dict) else token
        if not key.isdecimal() or len(key) > 8 or not isinstance(content, str) or not content:
            raise TokenizerError(
                f"{folder / CONFIG}: added_tokens_decoder[{shown(key)!r}] is no token with an id"
            )
        flags = ("special", "single_word", "lstrip", "rstrip", "normalized")
        given = {f: token[f] for f in flags if isinstance(token, dict) and f in token}
        listed[int(key)] = tokenizers.AddedToken(
            content, **{f: v is True for f, v in given.items()}
        )
    missing = [i for i in sorted(listed) if tokenizer.token_to_id(listed[i].content) != i]
    for number in missing:
        content = listed[number].content
        tokenizer.add_tokens([listed[number]])
        if tokenizer.token_to_id(content) != number:
            raise TokenizerError(
                f'{folder}: the added token "{shown(content)}" should have id {number}, but the '
                f"tokenizer gives it {tokenizer.token_to_id(content)}; correct its id"
            )
    return bool(missing)


def _special_id(
    tokenizer: Any, said: Mapping[str, Any], key: str, usual: Sequence[str]
) -> int | None:
    """The id of a special token: what the files say; where they say nothing, a usual name."""
    from llmasos_jax.data.tokenizers.huggingface import usual_id

    if key in said:
        named = said[key].get("content") if isinstance(said[key], dict) else said[key]
        return tokenizer.token_to_id(named) if isinstance(named, str) else None
    return usual_id(tokenizer, usual)
