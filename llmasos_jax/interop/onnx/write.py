"""Writes a model as ONNX: graphs, one file with all weights, and what programs want beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.data.tokenizers.huggingface import FILE as TOKENIZER
from llmasos_jax.errors import FormatError
from llmasos_jax.format.manifest import to_json
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.format.write import write_file
from llmasos_jax.interop.hf.express import express
from llmasos_jax.interop.hf.open import CONFIG
from llmasos_jax.interop.hf.write import config_with_ids, write_generation, write_tokenizer
from llmasos_jax.interop.onnx.check import check_onnx, is_decoder
from llmasos_jax.interop.onnx.genai import GENAI, genai_config
from llmasos_jax.interop.onnx.graph import OPSET
from llmasos_jax.interop.onnx.model import Built, build
from llmasos_jax.interop.written import Written

DATA = "model.onnx.data"
PROPERTY = "llmasos.model"  # the key of the manifest among a graph's metadata
_ALIGN = 4096  # a page: runtimes map the file
_CHUNK = 2**24


def write_onnx(
    files: ModelFiles, out: Path, *, on_tensor: Callable[[str, int], None] | None = None
) -> Written:
    """Writes a model as ONNX; its memory is the largest tensor.

    Weights stand in the file in their own type, as our format lays them out; the graph computes in
    float32 whatever that is.

    Args:
      files: the model.
      out: an empty folder.
      on_tensor: called with the name and size in bytes of each tensor written.

    Raises:
      FormatError: ONNX cannot hold this model, or the disk does not take it.
      MissingExtraError: the onnx package is not installed.
    """
    cfg = files.manifest.parameters
    check_onnx(cfg)
    built = build(cfg, files.tensors)
    _check_all_used(built, files.tensors)
    manifest = to_json(files.manifest.replace(weights=None, tokenizer=None))
    tokenizer = None if files.tokenizer is None else files.tokenizer.load()
    notes = write_tokenizer(files, tokenizer, out)
    has_tokenizer = (out / TOKENIZER).is_file()
    notes += _write_config(files, tokenizer if has_tokenizer else None, out)
    if is_decoder(cfg) and not cfg.encoder.num_layers:
        said = genai_config(files.manifest, tokenizer)
        if isinstance(said, str):
            notes.append(said)
        else:
            write_file(out / GENAI, (json.dumps(said, indent=2) + "\n").encode("utf-8"))
    places = _places(files.tensors)
    _write_data(out / DATA, files.tensors, places, on_tensor)
    for name, one in built.items():
        model = one.graph.finish(
            Path(name).stem, one.inputs, one.outputs, places, DATA, {PROPERTY: manifest}
        )
        write_file(out / name, model.SerializeToString())
    kind = "encoder-decoder" if len(built) > 1 else "decoder" if is_decoder(cfg) else "encoder"
    num_bytes = sum(tensor.nbytes for tensor in files.tensors.values())
    what = f"ONNX {kind}, opset {OPSET}, computed in float32"
    return Written(what, len(files.tensors), num_bytes, tuple(notes))


def _check_all_used(built: Mapping[str, Built], tensors: Mapping[str, StoredTensor]) -> None:
    used = {name for one in built.values() for name in one.graph.used}
    if left := sorted(tensors.keys() - used):
        raise FormatError(
            f"ONNX cannot hold this model: no node of the graph reads {', '.join(left[:5])}"
        )


def _write_config(files: ModelFiles, tokenizer: Any, out: Path) -> list[str]:
    """The `config.json` by which optimum knows the family, where there is one."""
    write_generation(files, out, tokenizer)
    try:
        found = express(files.manifest)
    except FormatError:
        return [f"no family of transformers is this model, so the folder has no {CONFIG}"]
    config = config_with_ids(found, files, tokenizer)
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(out / CONFIG, text.encode("utf-8"))
    return []


def _places(tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, int]]:
    """First byte and number of bytes of each tensor in the file."""
    found, end = {}, 0
    for name, tensor in tensors.items():
        begin = -(-end // _ALIGN) * _ALIGN
        found[name] = (begin, tensor.nbytes)
        end = begin + tensor.nbytes
    return found


def _write_data(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    places: Mapping[str, tuple[int, int]],
    on_tensor: Callable[[str, int], None] | None,
) -> None:
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            begin, size = places[name]
            file.write(b"\0" * (begin - file.tell()))
            # Through uint8, as NumPy gives no buffer of bfloat16.
            raw = np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
            if raw.nbytes != size:
                raise FormatError(
                    f"{name} was announced as {tensor} and read as {raw.nbytes} bytes"
                )
            for start in range(0, size, _CHUNK):
                file.write(raw[start : start + _CHUNK].data)
            del raw  # before the next one is read: memory is one tensor
            if on_tensor is not None:
                on_tensor(name, size)
        file.flush()
        os.fsync(file.fileno())
