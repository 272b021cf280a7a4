"""What a folder of sentence-transformers says beside the model: how a text's vector is made."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import parse_json, shown
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.files import MAX_CONFIG_BYTES, read_bounded, read_object

MODULES = "modules.json"
CONFIG = "config.json"
_LOG = logging.getLogger(__name__)
# By the keys of older versions, and by the value of "pooling_mode" in newer ones.
_KINDS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_OTHERS = (
    *("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    *("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"),
)


def read_pooling(folder: Path, ignore: Sequence[str] = ()) -> str | None:
    """How the vector of a whole text is made: "mean" or "cls"; None where the folder says nothing.

    A vector is divided by its length when it is asked for, so `Normalize` changes nothing.

    Args:
      folder: of a model; `modules.json` lists what follows it.
      ignore: keys that are taken as absent; `modules.json` takes the whole of it as absent.

    Raises:
      FormatError: it asks for another pooling, or for another module.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    if MODULES in ignore:
        _LOG.warning("%s: %s is left out, as asked", folder, MODULES)
        return None
    pooling = None
    for kind, name in _modules(path):
        if kind == "Pooling":
            pooling = _pooling(folder, name, ignore)
        elif kind not in ("Transformer", "Normalize"):
            raise FormatError(
                f'{path}: the module "{shown(kind)}" is not computed here; known: Transformer, '
                f"Pooling, Normalize; ignore=({MODULES!r},) reads the model alone"
            )
    return pooling


def _modules(path: Path) -> list[tuple[str, str]]:
    """The class of each module without its package, and its folder."""
    found = parse_json(read_bounded(path, MAX_CONFIG_BYTES), str(path))
    entries = found if isinstance(found, list) else [None]
    modules = []
    for entry in entries:
        kind, name = (entry.get(k) if isinstance(entry, dict) else None for k in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(name, str):
            raise FormatError(f'{path} must list modules, each with a "type" and a "path"')
        modules.append((kind.rsplit(".", 1)[-1], name))
    return modules


def _pooling(folder: Path, name: str, ignore: Sequence[str]) -> str:
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise FormatError(f'{folder / MODULES}: "{shown(name)}" is not the name of a folder in it')
    path = folder / name / CONFIG
    if not path.is_file():
        raise FormatError(f"{folder / MODULES} names {path}, which is not there; get it again")
    keys = Keys(read_object(path), str(path), ignore, is_config=False)
    keys.inert("word_embedding_dimension", "embedding_dimension", why="the model says its width")
    keys.inert("include_prompt", why="of prompts, which are not added here")
    for key in _OTHERS:
        keys.only(key, False, why="the vector of a text is the mean of its tokens or the first")
    kinds = [kind for key, kind in _KINDS.items() if keys.flag(key, False)]
    if "pooling_mode" in keys:
        kinds.append(keys.choice("pooling_mode", {"mean": "mean", "cls": "cls"}))
    keys.finish()
    if len(kinds) != 1:
        raise FormatError(
            f"{path} asks for {' and '.join(kinds) or 'no pooling'}; expected mean or cls"
        )
    return kinds[0]
