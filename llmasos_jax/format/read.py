"""Reads an LLMasOS model. Runs no code, leaves the model's folder never, believes no length."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmasos_jax.errors import FormatError
from llmasos_jax.format import folder as folders
from llmasos_jax.format.manifest import (
    MAX_BYTES,
    Manifest,
    Weights,
    parse_manifest,
    refuse_code,
)
from llmasos_jax.format.names import check_tensors, expected, unflatten
from llmasos_jax.format.strict import parse_json, shown
from llmasos_jax.format.tensorfile import StoredTensor, open_tensors
from llmasos_jax.format.tokenizerfiles import TokenizerFiles, folder_tokenizer


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk, its tensors not yet read.

    Attributes:
      path: its folder.
      manifest: what `model.json` says.
      tensors: name in the file -> tensor; exactly those of the model, in the order of the format.
      tokenizer: opens the tokenizer of `manifest.tokenizer`, or copies it; None if the model has
        none.
    """

    path: Path
    manifest: Manifest
    tensors: Mapping[str, StoredTensor]
    tokenizer: TokenizerFiles | None

    def params(self) -> dict[str, Any]:
        """The tree of parameters in the unrolled layout; each leaf a view of the mapped file."""
        return unflatten({name: tensor.read() for name, tensor in self.tensors.items()})

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def read_manifest(source: str | os.PathLike[str], *, allow_code: bool = False) -> Manifest:
    """Reads a `model.json`; its weights need not be there.

    Args:
      source: the file, or the folder that has it.
      allow_code: whether parts may be called "package.module:name", which imports that module. Off
        by default: opening a model runs no code.

    Raises:
      FormatError: it is absent, does not follow the format, or names code.
    """
    path = folders.find_manifest(source)
    manifest = parse_manifest(folders.read_bytes(path, MAX_BYTES), path.name)
    if not allow_code:
        refuse_code(manifest, path.name)
    return manifest


def read_model(source: str | os.PathLike[str], *, allow_code: bool = False) -> ModelFiles:
    """Opens a model: checks `model.json` and every header, reads no tensor.

    Args:
      source: a `model.json`, or the folder that has it.
      allow_code: whether parts may be called "package.module:name", which imports that module. Off
        by default: opening a model runs no code.

    Returns:
      The model, its tensors to be read when asked for.

    Raises:
      FormatError: anything is wrong with it. No other error comes out, whatever the bytes.
    """
    path = folders.find_manifest(source)
    folder = path.parent
    manifest = read_manifest(path, allow_code=allow_code)
    names = weight_files(folder, manifest)
    if not names:
        raise FormatError(
            f'"{folder}" has a {path.name} and no weights; init_model("{source}") gives this model '
            "random ones, or put its model.safetensors beside it"
        )
    tensors = _open_all(folder, manifest, names)
    check_tensors(manifest.parameters, tensors, str(folder))
    in_order = {name: tensors[name] for name in expected(manifest.parameters)}
    tokenizer = folder_tokenizer(manifest.tokenizer, folder, is_shared=True)
    return ModelFiles(folder, manifest, MappingProxyType(in_order), tokenizer)


def weight_files(folder: Path, manifest: Manifest) -> list[str]:
    """The names of the files with the weights; [] if the model has none."""
    if manifest.weights is not None:
        return [entry.file for entry in manifest.weights.files]
    return [folders.WEIGHTS] if os.path.lexists(folder / folders.WEIGHTS) else []


def _open_all(folder: Path, manifest: Manifest, names: list[str]) -> dict[str, StoredTensor]:
    weights = manifest.weights
    sizes = {entry.file: entry.size for entry in weights.files} if weights else {}
    homes: dict[str, str] = {}
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        path = folders.file_in(folder, name)
        size = path.stat().st_size
        if sizes.get(name, size) != size:
            raise FormatError(
                f"{name} has {size} bytes, model.json says {sizes[name]}; it is cut off "
                "or another file"
            )
        for tensor_name, tensor in open_tensors(path).items():
            if tensor_name in tensors:
                raise FormatError(
                    f"{shown(tensor_name)} is in {homes[tensor_name]} and in {name}; once is right"
                )
            tensors[tensor_name], homes[tensor_name] = tensor, name
    if weights is not None and weights.index is not None:
        _check_index(folder, weights, homes)
    return tensors


def _check_index(folder: Path, weights: Weights, homes: dict[str, str]) -> None:
    name = str(weights.index)
    raw = folders.read_bytes(folders.file_in(folder, name), 4 * MAX_BYTES)
    index = parse_json(raw, name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if weight_map != homes:
        raise FormatError(
            f"{name} does not say which tensor is in which file, as the files have it"
        )
