"""Opens a GGUF file as a model: its tensors become float32, or stay float16 or bfloat16."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmasos_jax.errors import FormatError, TokenizerError
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.gguf.config import family, read_config
from llmasos_jax.interop.gguf.container import TensorInfo
from llmasos_jax.interop.gguf.keys import Keys
from llmasos_jax.interop.gguf.names import gguf_table
from llmasos_jax.interop.gguf.norms import without_one
from llmasos_jax.interop.gguf.parts import Whole, read_whole
from llmasos_jax.interop.gguf.quants import (
    PLAIN,
    is_readable,
    read_tensor,
    readable_types,
    stored_dtype,
)
from llmasos_jax.interop.gguf.tokenizer import end_ids, rebuild
from llmasos_jax.interop.tables import bind

_MOST_TEXT = 1000  # characters of one of the file's remarks that are kept
_MOST_TEMPLATE = 2**20  # characters of a chat template
# The layout of quantised blocks has stood since this version.
_QUANTIZATION_VERSION = 2


def open_gguf(path: Path, *, ignore: Sequence[str] = ()) -> ModelFiles:
    """Opens a model that llama.cpp's converter wrote, and reads no tensor but rotary factors.

    Args:
      path: a `.gguf` file; of a model in several, the first.
      ignore: keys of the metadata and names of tensors that the caller accepts to lose; "*" stands
        for anything.

    Returns:
      The model; each tensor is made float32 when it is read, or has its own type if that is F32,
      F16 or BF16.

    Raises:
      FormatError: it is no whole GGUF file, its architecture or a type of tensors is not read here,
        or something in it has no place in the model. No other error comes out, whatever the bytes.
    """
    whole = read_whole(Path(path))
    where = whole.path.name
    theirs = _stored(whole, tuple(ignore))
    keys = Keys(whole.metadata, where)
    _check_kind(whole)
    cfg = read_config(keys, theirs)
    keys.check_all_read(ignore)
    table = gguf_table(keys.arch, cfg, theirs)
    tensors = without_one(keys, cfg, bind(table, cfg, theirs, where, ignore=ignore))
    try:
        tokenizer = rebuild(whole.metadata)
        ends = end_ids(whole.metadata)
    except TokenizerError as error:
        raise FormatError(f"{where}: {error}") from error
    manifest = Manifest(
        name=_name(whole),
        parameters=cfg,
        architecture=family(keys.arch, whole.metadata),
        generation=Generation(
            eos_ids=tuple(i for i in ends if i < cfg.vocab_size),
            chat_template=_chat_template(whole),
        ),
        metadata=_remarks(whole),
    )
    return ModelFiles(whole.path, manifest, MappingProxyType(tensors), tokenizer)


def _stored(whole: Whole, ignore: tuple[str, ...]) -> dict[str, StoredTensor]:
    """Every tensor of the file, to be read when asked for."""
    found = {}
    for name, (path, info) in whole.tensors.items():
        kind = info.type.name
        if not is_readable(kind):
            raise FormatError(
                f'{path.name}: the tensor "{shown(name)}" is stored as {kind}, which is not read; '
                f"these types are: {', '.join(readable_types())}"
            )
        shape = _without_ones(name, info)
        read = partial(_read, path, info, shape)
        found[name] = StoredTensor(shape, stored_dtype(kind), read)
    return found


def _read(path: Path, info: TensorInfo, shape: tuple[int, ...]) -> Any:
    return read_tensor(path, info).reshape(shape)


def _without_ones(name: str, info: TensorInfo) -> tuple[int, ...]:
    """A vector is a vector: files may give it leading axes of size 1."""
    if name.endswith((".bias", "_norm.weight", "_shexp.weight")) and info.shape[:-1].count(1) == (
        len(info.shape) - 1
    ):
        return info.shape[-1:]
    return info.shape


def _check_kind(whole: Whole) -> None:
    where, metadata = whole.path.name, whole.metadata
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise FormatError(
            f'{where}: general.type = "{shown(kind)}" is not a model by itself; only "model" is '
            "read"
        )
    version = metadata.get("general.quantization_version", _QUANTIZATION_VERSION)
    has_blocks = any(info.type.name not in PLAIN for _, info in whole.tensors.values())
    if has_blocks and version != _QUANTIZATION_VERSION:
        raise FormatError(
            f"{where}: general.quantization_version = {shown(version)}, only "
            f"{_QUANTIZATION_VERSION} is read; quantise the model again"
        )


def _name(whole: Whole) -> str:
    name = whole.metadata.get("general.name")
    name = " ".join(name.split()) if isinstance(name, str) else ""
    return (name or whole.stem)[:200]


def _chat_template(whole: Whole) -> str | None:
    template = whole.metadata.get("tokenizer.chat_template")
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > _MOST_TEMPLATE:
        raise FormatError(
            f"{whole.path.name}: tokenizer.chat_template must be a text of at most "
            f"{_MOST_TEMPLATE} characters"
        )
    return template


def _remarks(whole: Whole) -> dict[str, Any]:
    """What the file says of its origin, and how it stores the numbers."""
    types = Counter(info.type.name for _, info in whole.tensors.values())
    found: dict[str, Any] = {"source_format": "gguf", "tensor_types": dict(types)}
    for key, value in whole.metadata.items():
        name = key.removeprefix("general.")
        if name != key and re.fullmatch(r"[a-z0-9_.]{1,64}", name) and name not in _SAID:
            if isinstance(value, (str, int)) or _are_texts(value):
                found[name] = _cut(value)
    return found


_SAID = ("architecture", "name", "type", "alignment", "source_format", "tensor_types")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 100


def _cut(value: str | int | Iterable[str]) -> Any:
    if isinstance(value, int):
        return value
    return value[:_MOST_TEXT] if isinstance(value, str) else [text[:_MOST_TEXT] for text in value]
