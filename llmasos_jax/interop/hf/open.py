"""Hugging Face folders: `config.json` and safetensors, read as a model of ours. No torch needed."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError, FormatError, did_you_mean
from llmasos_jax.format import folder as folders
from llmasos_jax.format.manifest import Generation, Manifest, to_json
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.strict import parse_json, shown
from llmasos_jax.format.tensorfile import StoredTensor, open_tensors
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families import FAMILIES, NOT_READ
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.sentence import read_pooling
from llmasos_jax.interop.hf.tokenizer import chat_template, folder_tokenizer_files
from llmasos_jax.interop.lowrank import PEFT_CONFIG
from llmasos_jax.interop.tables import bind

CONFIG = "config.json"
GENERATION = "generation_config.json"
MAX_CONFIG = 16 * 2**20  # bytes
MAX_INDEX = 64 * 2**20  # bytes
# Formats of weights that are programs, or that are not read here.
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.ot")
_START = "decoder_start_token_id"
_QUANTISED = ("quantization_config", "compression_config")
_LOG = logging.getLogger(__name__)


def open_hf(folder: str | os.PathLike[str], *, ignore: Sequence[str] = ()) -> ModelFiles:
    """Opens a Hugging Face folder: checks everything, reads no tensor that is used.

    Args:
      folder: with a `config.json`, and its weights as safetensors in one file or several.
      ignore: keys of `config.json` that are taken as absent, and tensors that may get lost ("*"
        stands for anything); a line in the log says each.

    Returns:
      The model. Its tensors are views of the mapped files where that is possible.

    Raises:
      FormatError: anything is wrong with it, or it asks for what is not computed here.
      TokenizerError: its tokenizer is of a kind that is not read here.
    """
    folder = Path(folder)
    config = _read_config(folder)
    family = _family(config)
    weights = _Weights(folder, family)
    cfg = read_parameters(family, config, ignore, lambda: weights.names(ignore))
    if not cfg.causal and (pooling := read_pooling(folder, ignore)) is not None:
        cfg = cfg.replace(pooling=pooling)
    manifest = Manifest(
        name=_name(folder),
        parameters=cfg,
        architecture=family.name,
        generation=_generation(folder, config, cfg),
        metadata={
            "source_format": "huggingface",
            "source_class": (config.get("architectures") or family.architectures)[0],
        },
    )
    _check(manifest)
    theirs = weights.tensors
    _check_head(family, config, cfg, theirs)
    tensors = bind(
        family.table(cfg), cfg, theirs, str(folder), ignore=ignore, spelled=weights.spelled
    )
    return ModelFiles(folder, manifest, MappingProxyType(tensors), folder_tokenizer_files(folder))


class _Weights:
    """The tensors of a folder, opened when somebody first asks for them."""

    def __init__(self, folder: Path, family: Family) -> None:
        self._folder = folder
        self._family = family

    @cached_property
    def _stored(self) -> dict[str, StoredTensor]:
        return _open_weights(self._folder)

    @cached_property
    def _renamed(self) -> list[str]:
        return self._family.rename(list(self._stored))

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """By their names as the family's table has them."""
        theirs = dict(zip(self._renamed, self._stored.values(), strict=True))
        if len(theirs) != len(self._renamed):
            twice = Counter(self._renamed).most_common(1)[0][0]
            raise FormatError(
                f"{self._folder}: {shown(twice)} is there twice, with and without a prefix"
            )
        return theirs

    def names(self, ignore: Sequence[str]) -> list[str]:
        """The names of the tensors that are not to be ignored."""
        return [
            name
            for name in self.tensors
            if not any(
                fnmatch.fnmatchcase(n, p) for p in ignore for n in (name, self.spelled(name))
            )
        ]

    @cached_property
    def spelled(self) -> Callable[[str], str]:
        """From a name of the table to the file's."""
        return self._family.spelling(list(self._stored), self._renamed)


def _read_config(folder: Path) -> dict[str, Any]:
    if not os.path.lexists(folder / CONFIG):
        if os.path.lexists(folder / PEFT_CONFIG):
            raise FormatError(
                f'"{folder}" is an adapter ({PEFT_CONFIG}), a change to another model; load_model '
                "and `llmasos convert` open both as one"
            )
        raise FormatError(f'"{folder}" is no Hugging Face folder: it has no {CONFIG}')
    config = _read_object(folder, CONFIG)
    for key in _QUANTISED:
        if config.get(key):
            method = config[key].get("quant_method") if isinstance(config[key], dict) else None
            raise FormatError(
                f"{CONFIG}: the weights are quantised ({shown(str(method or key))}), which is not "
                "read; take the model's float16 or bfloat16 release, or a GGUF of it"
            )
    return config


def _read_object(folder: Path, name: str, limit: int = MAX_CONFIG) -> dict[str, Any]:
    found = parse_json(folders.read_bytes(folders.file_in(folder, name), limit), name)
    if not isinstance(found, dict):
        raise FormatError(f"{name} is not a JSON object")
    return found


def _family(config: Mapping[str, Any]) -> Family:
    """The family by the class that wrote the file, else by its `model_type`."""
    classes, kind = config.get("architectures"), config.get("model_type")
    if classes is None or classes == []:
        by_type = {family.model_type: family for family in FAMILIES}
        if isinstance(kind, str) and kind in by_type:
            return by_type[kind]
        raise FormatError(
            f'{CONFIG} names no "architectures", and its "model_type" = {shown(str(kind))} is not '
            f"read here{did_you_mean(shown(str(kind)), by_type)}"
        )
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise FormatError(f'{CONFIG}: "architectures" = {shown(classes)} must be a list of names')
    by_class = {name: family for family in FAMILIES for name in family.architectures}
    name = classes[0]
    if name in by_class:
        return by_class[name]
    if isinstance(kind, str) and kind in NOT_READ:
        raise FormatError(f"{CONFIG}: {shown(name)} is not read here: {NOT_READ[kind]}")
    stem = next((f for f in FAMILIES if f.model_type == kind), None)
    if stem is not None:
        raise FormatError(
            f"{CONFIG}: {shown(name)} is a {stem.name} with another task's head, which is not "
            f"read; known for it: {', '.join(stem.architectures)}"
        )
    raise FormatError(
        f"{CONFIG}: the class {shown(name)} is not read here{did_you_mean(shown(name), by_class)}"
    )


def read_parameters(
    family: Family,
    config: Mapping[str, Any],
    ignore: Sequence[str],
    tensors: Callable[[], Collection[str]],
) -> ModelConfig:
    """What a `config.json` says the model is.

    Args:
      family: of the model.
      config: the file.
      ignore: keys that are taken as absent.
      tensors: gives the names of the tensors beside it, as the family's table has them.

    Raises:
      FormatError: it says something that is not computed here.
    """
    keys = Keys(config, CONFIG, ignore, tensors=tensors)
    try:
        cfg = family.read_config(keys)
    except ConfigError as error:
        raise FormatError(f"{CONFIG}: as a {family.name}, {error}") from error
    keys.finish()
    return cfg


def _check(manifest: Manifest) -> None:
    """The bounds of the format hold here too: a config from a stranger may ask for anything."""
    try:
        to_json(manifest)
    except FormatError as error:
        raise FormatError(
            f"{CONFIG} gives a model that the format does not allow: {error}"
        ) from error


def _check_head(
    family: Family, config: Mapping[str, Any], cfg: ModelConfig, names: Iterable[str]
) -> None:
    """Refuses what a base class saved, if the model has an output layer of its own."""
    saved = (config.get("architectures") or family.architectures)[0]
    # GPT2LMHeadModel is no base class, for all its name.
    is_base = saved.endswith("Model") and saved != family.architectures[0]
    if not is_base or cfg.head is None or cfg.tie_embeddings:
        return
    if not any(name.startswith(family.outside) for name in names):
        raise FormatError(
            f"{CONFIG}: {saved} is the model without its output layer, which is not tied to the "
            f"embedding (tie_word_embeddings), so it gives no logits; save the "
            f"{family.architectures[0]} that it is of"
        )


def _name(folder: Path) -> str:
    """The model's name: the folder's, and in the hub's own cache the repository's."""
    path = Path(os.path.abspath(folder))
    if path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name or "model"


def _generation(folder: Path, config: Mapping[str, Any], cfg: ModelConfig) -> Generation:
    """Where a text ends, and the chat template."""
    found: Any = None
    text = config.get("text_config")
    sources = [config, text if isinstance(text, dict) else {}]
    if os.path.lexists(folder / GENERATION):
        sources.insert(0, _read_object(folder, GENERATION))
    for source in sources:
        if found is None:
            found = source.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise FormatError(f'{CONFIG}: "eos_token_id" = {shown(found)} must be ids of tokens')
    inside = tuple(i for i in ids if i < cfg.vocab_size)
    if len(inside) < len(ids):
        _LOG.warning(
            "eos_token_id %s is beyond the model's %d ids and ends no text", ids, cfg.vocab_size
        )
    start_id = _decoder_start(folder, config, cfg.vocab_size) if cfg.encoder.num_layers else None
    return Generation(inside, _stop_strings(folder), chat_template(folder), start_id)


def _stop_strings(folder: Path) -> tuple[str, ...]:
    """Texts that end an answer."""
    if not os.path.lexists(folder / GENERATION):
        return ()
    found = _read_object(folder, GENERATION).get("stop_strings")
    texts = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise FormatError(f'{GENERATION}: "stop_strings" = {shown(found)} must be texts')
    return tuple(texts)


def _decoder_start(folder: Path, config: Mapping[str, Any], num_ids: int) -> int:
    """What the decoder of an encoder-decoder begins with.

    As where transformers generates, `generation_config.json` goes before `config.json`.
    """
    files = [(CONFIG, config)]
    if os.path.lexists(folder / GENERATION):
        files.insert(0, (GENERATION, _read_object(folder, GENERATION)))
    said = [(name, found[_START]) for name, found in files if found.get(_START) is not None]
    where: str = said[0][0] if said else CONFIG
    found: Any = said[0][1] if said else None
    is_id = isinstance(found, int) and not isinstance(found, bool)
    if not is_id or not 0 <= found < num_ids:
        raise FormatError(
            f'{where}: "{_START}" = {shown(str(found))} must be the id that its decoder begins '
            f"with, 0 to {num_ids - 1} (in T5 its pad_token_id); {'correct' if said else 'add'} it"
        )
    for name, other in said[1:]:
        if other != found:
            _LOG.warning(
                '"%s" is %d in %s and %s in %s; the first is taken, as transformers does',
                *(_START, found, where, shown(str(other)), name),
            )
    return found


def _open_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's safetensors, by their own names."""
    if os.path.lexists(folder / folders.WEIGHTS):
        return open_tensors(folders.file_in(folder, folders.WEIGHTS), others=True)
    if os.path.lexists(folder / folders.INDEX):
        return _open_sharded(folder)
    others = sorted(path.name for kind in _OTHER_WEIGHTS for path in folder.glob(kind))
    if others:
        raise FormatError(
            f'"{folder}" has {others[0]} and no {folders.WEIGHTS}; such files are programs, which '
            "are not run. Convert it where you trust it: "
            "transformers.AutoModel.from_pretrained(FOLDER).save_pretrained(OUT), with the class "
            f"that {CONFIG} names in place of AutoModel"
        )
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = f" (there is {', '.join(found[:3])})" if found else ""
    raise FormatError(
        f'"{folder}" has a {CONFIG} and no weights: put {folders.WEIGHTS}, or {folders.INDEX} and '
        f"its files, beside it{hint}"
    )


def _open_sharded(folder: Path) -> dict[str, StoredTensor]:
    index = _read_object(folder, folders.INDEX, MAX_INDEX)
    homes = index.get("weight_map")
    if not isinstance(homes, dict) or not all(isinstance(v, str) for v in homes.values()):
        raise FormatError(f'{folders.INDEX}: "weight_map" must say which tensor is in which file')
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(homes.values())):
        for name, tensor in open_tensors(folders.file_in(folder, file), others=True).items():
            if homes.get(name) != file:
                says = f"in {shown(homes[name])}" if name in homes else "nowhere"
                raise FormatError(
                    f"{shown(name)} is in {file}, and {folders.INDEX} says {says}; the files do "
                    "not belong together"
                )
            tensors[name] = tensor
    missing = [name for name in homes if name not in tensors]
    if missing:
        raise FormatError(
            f"{shown(missing[0])} is not in {shown(homes[missing[0]])}, where {folders.INDEX} says "
            f"it is ({len(missing)} are not); the files do not belong together"
        )
    return tensors
