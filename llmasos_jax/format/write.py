"""Writes an LLMasOS model: one tensor at a time, then the whole folder put in place in one step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmasos_jax.errors import FormatError
from llmasos_jax.format import folder as folders
from llmasos_jax.format.manifest import (
    FORMAT_VERSION,
    MAX_BYTES,
    Manifest,
    Weights,
    WeightsFile,
    parse_manifest,
    to_json,
)
from llmasos_jax.format.names import check_tensors, expected
from llmasos_jax.format.tensorfile import StoredTensor, build_header

SHARD_BYTES = 5_000_000_000


class SavesFiles(Protocol):
    """What a tokenizer can do: write its files into a folder and say what they are."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the files; returns the `tokenizer` entry of `model.json`."""
        ...


def write_model(
    out: str | os.PathLike[str],
    manifest: Manifest,
    tensors: Mapping[str, StoredTensor],
    tokenizer: SavesFiles | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[str, int], None] | None = None,
) -> Path:
    """Writes a model folder. Its memory is the largest tensor.

    Args:
      out: a new or empty folder, or a model's folder, which is replaced. A process killed at any
        moment leaves there what was there.
      manifest: everything but `weights` (and `tokenizer` where one is given), which are filled in.
      tensors: name -> tensor (`tensorfile.stored(array)` wraps an array); exactly the model's own.
      tokenizer: saves its files beside the weights; None for a model that reads ids.
      shard_bytes: weights above this go to several files with an index; one tensor is never cut.
      on_tensor: called with the name and size in bytes of each tensor written.

    Returns:
      The folder.

    Raises:
      FormatError: a tensor is missing, extra or of another shape; `out` is something else than a
        model; or the disk does not take it (full, no permission).

    Example:
      >>> import tempfile
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.format.read import read_model
      >>> from llmasos_jax.format.tensorfile import stored
      >>> cfg = ModelConfig(vocab_size=10, embedding_dim=64, num_layers=1)
      >>> tensors = {n: stored(np.ones(s.shape, np.float32)) for n, s in expected(cfg).items()}
      >>> with tempfile.TemporaryDirectory() as parent:
      ...     folder = write_model(f"{parent}/tiny", Manifest("tiny", cfg), tensors)
      ...     read_model(folder).num_parameters
      54080
    """
    out = Path(out)
    _check(manifest, tensors)
    with folders.replaced_folder(out, _own_files(out)) as temporary:
        fill_folder(
            temporary, manifest, tensors, tokenizer, shard_bytes=shard_bytes, on_tensor=on_tensor
        )
    return out


def fill_folder(
    folder: Path,
    manifest: Manifest,
    tensors: Mapping[str, StoredTensor],
    tokenizer: SavesFiles | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[str, int], None] | None = None,
) -> None:
    """Writes a model into an empty folder that is not in its place yet; see `write_model`.

    Raises:
      FormatError: a tensor is missing, extra or of another shape.
      OSError: the disk does not take it.
    """
    _check(manifest, tensors)
    in_order = {name: tensors[name] for name in expected(manifest.parameters)}
    manifest = manifest.replace(format_version=FORMAT_VERSION, weights=None)
    if tokenizer is not None:
        manifest = manifest.replace(tokenizer=_save_tokenizer(tokenizer, folder))
    weights = write_weights(folder, in_order, shard_bytes, on_tensor)
    text = to_json(manifest.replace(weights=weights))
    write_file(folder / folders.MANIFEST, text.encode("utf-8"))


def _check(manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> None:
    """What cannot be written is said before gigabytes are."""
    check_tensors(manifest.parameters, tensors, "the model to write")
    to_json(manifest.replace(format_version=FORMAT_VERSION, weights=None))


def _save_tokenizer(tokenizer: SavesFiles, folder: Path) -> dict[str, Any]:
    entry = tokenizer.save(folder)
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return entry


def _own_files(out: Path) -> set[str]:
    """The names of the files that belong to the model that `out` holds already."""
    try:
        raw = folders.read_bytes(folders.find_manifest(out), MAX_BYTES)
        manifest = parse_manifest(raw)
    except FormatError:
        return set()
    own = {folders.WEIGHTS, folders.INDEX}
    if manifest.weights is not None:
        own |= {entry.file for entry in manifest.weights.files} | {str(manifest.weights.index)}
    # A tokenizer of any kind names its files somewhere in its entry.
    return own | _strings(manifest.tokenizer)


def _strings(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        value = list(value.values())
    return set().union(*(_strings(item) for item in value)) if isinstance(value, list) else set()


def shards(tensors: Mapping[str, StoredTensor], shard_bytes: int) -> list[dict[str, StoredTensor]]:
    """Cuts the tensors, in their order, into files of at most `shard_bytes` (or of one tensor).

    Example:
      >>> one = StoredTensor((4,), "float32", lambda: np.zeros(4, np.float32))
      >>> [list(part) for part in shards({"a": one, "b": one, "c": one}, 32)]
      [['a', 'b'], ['c']]
    """
    parts: list[dict[str, StoredTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


def write_weights(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[str, int], None] | None = None,
    *,
    kind: str = "llmasos-1",
) -> Weights:
    """Writes tensors into a folder, in one safetensors file or several with an index.

    Args:
      folder: is there.
      tensors: by name, in the order of the files.
      shard_bytes: of a file at most, but for one tensor.
      on_tensor: called with the name and size in bytes of each tensor written.
      kind: what the files say of themselves.

    Raises:
      FormatError: a tensor is not what it was announced as.
    """
    parts = shards(tensors, shard_bytes)
    count = len(parts)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = [folders.WEIGHTS] if count == 1 else names
    files = [
        _write_tensors(folder / name, part, on_tensor, kind)
        for name, part in zip(names, parts, strict=True)
    ]
    if count == 1:
        return Weights(tuple(files))
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {n: home for home, part in zip(names, parts, strict=True) for n in part},
    }
    write_file(folder / folders.INDEX, (json.dumps(index, indent=2) + "\n").encode("utf-8"))
    return Weights(tuple(files), folders.INDEX)


def _write_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    on_tensor: Callable[[str, int], None] | None,
    kind: str,
) -> WeightsFile:
    digest = hashlib.sha256()
    header = build_header(tensors, kind)
    size = len(header)
    with path.open("wb") as file:
        file.write(header)
        digest.update(header)
        for name, tensor in tensors.items():
            raw = _bytes_of(name, tensor)
            file.write(raw)
            digest.update(raw)
            size += raw.nbytes
            del raw  # before the next one is read: memory is one tensor
            if on_tensor is not None:
                on_tensor(name, tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())
    return WeightsFile(path.name, size, digest.hexdigest())


def _bytes_of(name: str, tensor: StoredTensor) -> memoryview:
    """The tensor's bytes, row by row; through uint8, as NumPy gives no buffer of bfloat16."""
    array = np.ascontiguousarray(tensor.read())
    if array.shape != tensor.shape or str(array.dtype) != tensor.dtype:
        found = dataclasses.replace(tensor, shape=array.shape, dtype=str(array.dtype))
        raise FormatError(f"{name} was announced as {tensor} and read as {found}")
    return array.reshape(-1).view(np.uint8).data


def write_file(path: Path, raw: bytes) -> None:
    """Writes a small file so that it lasts."""
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
