"""Reads back the ONNX graphs that were written here: their weights and what the model is."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from llmasos_jax.errors import FormatError, TokenizerError
from llmasos_jax.format.folder import file_in
from llmasos_jax.format.manifest import Manifest, parse_manifest, refuse_code
from llmasos_jax.format.names import check_tensors, expected
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import CODES, DTYPES, StoredTensor
from llmasos_jax.interop.hf.tokenizer import folder_tokenizer_files
from llmasos_jax.interop.onnx.library import import_onnx
from llmasos_jax.interop.onnx.model import DECODER_MODEL, ENCODER_MODEL, MODEL
from llmasos_jax.interop.onnx.write import DATA, PROPERTY

_MOST = 2**29  # bytes of a graph, whose weights are elsewhere
GRAPHS = (MODEL, ENCODER_MODEL, DECODER_MODEL)


def open_onnx(path: Path) -> ModelFiles:
    """Opens a model that was exported to ONNX here, and reads no tensor.

    Nothing of the graph's nodes is believed or run: they follow from what the model is.

    Args:
      path: the folder, or one of its graphs.

    Raises:
      FormatError: it is no ONNX graph, it was written by another program, or its weights are not
        the model's. No other error comes out, whatever the bytes.
      MissingExtraError: the onnx package is not installed.
    """
    folder = path if path.is_dir() else path.parent
    names = [name for name in GRAPHS if (folder / name).is_file()]
    if not names:
        raise FormatError(f'"{folder}" has no {MODEL}; give the folder of an export to ONNX')
    manifest: Manifest | None = None
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        found, own = _read_graph(folder, name)
        if manifest is not None and found != manifest:
            raise FormatError(f"{name} and {names[0]} are of different models")
        manifest = found
        tensors |= own
    if manifest is None:
        raise FormatError(f'"{folder}" has no graph')
    cfg = manifest.parameters
    wanted = expected(cfg)
    shaped = {n: _shaped(n, t, wanted[n].shape) if n in wanted else t for n, t in tensors.items()}
    check_tensors(cfg, shaped, str(folder))
    in_order = {name: shaped[name] for name in wanted}
    try:
        tokenizer = folder_tokenizer_files(folder)
    except TokenizerError as error:
        raise FormatError(f"{folder}: {error}") from error
    manifest = manifest.replace(metadata={**manifest.metadata, "source_format": "onnx"})
    return ModelFiles(folder, manifest, MappingProxyType(in_order), tokenizer)


def _read_graph(folder: Path, name: str) -> tuple[Manifest, dict[str, StoredTensor]]:
    onnx = import_onnx()
    path = file_in(folder, name)
    try:
        size = path.stat().st_size
        if size > _MOST:
            raise FormatError(
                f"{name} has {size} bytes; a graph without weights has at most {_MOST}"
            )
        model = onnx.load(path, load_external_data=False)
    except FormatError:
        raise
    except Exception as error:  # protobuf's own, of any kind
        line = " ".join(str(error).split())[:200]
        raise FormatError(f"{name} is no ONNX graph: {line}") from error
    texts = [entry.value for entry in model.metadata_props if entry.key == PROPERTY]
    if len(texts) != 1:
        raise FormatError(
            f'{name} was not written by llmasos_jax (it has no metadata "{PROPERTY}"), and graphs '
            "of other programs are not read; open the model that it was made of"
        )
    manifest = parse_manifest(texts[0].encode("utf-8"), f"{name}: {PROPERTY}")
    refuse_code(manifest, name)
    outside = onnx.TensorProto.EXTERNAL
    tensors = {
        tensor.name: _tensor(onnx, folder, name, tensor)
        for tensor in model.graph.initializer
        if tensor.data_location == outside
    }
    return manifest, tensors


def _tensor(onnx: Any, folder: Path, where: str, tensor: Any) -> StoredTensor:
    name, said = tensor.name, {entry.key: entry.value for entry in tensor.external_data}
    types = onnx.TensorProto
    kinds = {types.FLOAT: "float32", types.FLOAT16: "float16", types.BFLOAT16: "bfloat16"}
    dtype, shape = kinds.get(tensor.data_type), tuple(int(size) for size in tensor.dims)
    if dtype is None or min(shape, default=0) < 0:
        raise FormatError(f"{where}: {shown(name)} is of a type or shape that no weight has")
    if said.get("location") != DATA:
        raise FormatError(f"{where}: {shown(name)} is in another file than {DATA}")
    offset, length = (said.get(key, "") for key in ("offset", "length"))
    if not all(x.isascii() and x.isdigit() and len(x) < 20 for x in (offset, length)):
        raise FormatError(f"{where}: {shown(name)} has no offset and length in {DATA}")
    path = file_in(folder, DATA)
    begin, size = int(offset), int(length)
    wanted = math.prod(shape) * DTYPES[CODES[dtype]].itemsize
    if size != wanted or begin + size > path.stat().st_size:
        raise FormatError(
            f"{where}: {shown(name)} takes bytes {begin} to {begin + size} of {DATA}, which is cut "
            f"off or has not the {wanted} of its shape"
        )
    return StoredTensor(shape, dtype, partial(_read, path, dtype, shape, begin))


def _read(path: Path, dtype: str, shape: tuple[int, ...], begin: int) -> np.ndarray:
    kind = DTYPES[CODES[dtype]]
    try:
        raw = np.memmap(path, np.uint8, "r", begin, (math.prod(shape) * kind.itemsize,))
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read the weights: {error}") from error
    return np.asarray(raw).view(kind).reshape(shape)


def _shaped(name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The same numbers as our format lays them out: a graph has matrices."""
    if math.prod(shape) != math.prod(tensor.shape):
        raise FormatError(f"{name} has {list(tensor.shape)}, the model {list(shape)}")
    return StoredTensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))
