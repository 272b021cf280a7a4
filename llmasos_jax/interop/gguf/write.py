"""A model of ours as one GGUF file, tensor by tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.errors import FormatError, did_you_mean
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.interop.gguf.config import family
from llmasos_jax.interop.gguf.container import DEFAULT_ALIGNMENT
from llmasos_jax.interop.gguf.names import gguf_table
from llmasos_jax.interop.gguf.norms import rests, with_one
from llmasos_jax.interop.gguf.quantize import TYPES, WRITTEN, written_parts
from llmasos_jax.interop.gguf.write_config import Expressed, express
from llmasos_jax.interop.gguf.write_file import Outgoing, write_file
from llmasos_jax.interop.gguf.write_tokenizer import write_tokenizer
from llmasos_jax.interop.tables import unbind
from llmasos_jax.interop.written import Written

_QUANTIZATION_VERSION = 2
# llama.cpp's numbers for a file whose weights are mostly of one type.
_FILE_TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9},
    **{"Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "BF16": 32},
}
# What llama.cpp takes where a row is not whole blocks of 256 numbers, and then not of 32 either.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# What stays float32, as llama.cpp's converter and quantiser have it.
_SINGLE = re.compile(
    r".*_norm\.weight|.*\.bias|.*ffn_gate_inp(_shexp)?\.weight|position_embd\.weight"
    r"|token_types\.weight|rope_.*"
)
_STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_REMARKS = ("license", "author", "description", "url", "organization")


def type_named(dtype: str | None, tensors: Mapping[str, StoredTensor]) -> str:
    """GGUF's name of what `dtype` says; None is the type that most of the weights have.

    Raises:
      FormatError: it is not written here.

    Example:
      >>> type_named("q4_k", {}), type_named("float16", {})
      ('Q4_K', 'F16')
    """
    if dtype is None:
        counts: Counter[str] = Counter()
        for tensor in tensors.values():
            counts[tensor.dtype] += tensor.nbytes
        return _STORED_AS[counts.most_common(1)[0][0]]
    name = _STORED_AS.get(dtype, dtype.upper())
    if name not in WRITTEN:
        raise FormatError(
            f'dtype="{dtype}" is not written as GGUF{did_you_mean(name, WRITTEN)}; known: '
            f"{', '.join(WRITTEN)}"
        )
    return name


def check_gguf(files: ModelFiles, dtype: str | None) -> None:
    """Refuses, before a byte is written, what cannot be.

    Raises:
      FormatError: no architecture of llama.cpp is this model, or the type is not written.
    """
    type_named(dtype, files.tensors)
    express(files.manifest)


def write_gguf(
    files: ModelFiles,
    out: Path,
    *,
    dtype: str | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
) -> Written:
    """Writes a model as `NAME-DTYPE.gguf`. Its memory is the largest tensor.

    Norms, biases, routers, positions and token types are float32 whatever the type; all other
    weights, the embedding table and the output layer too, get the type (llama.cpp's `--pure`).

    Args:
      files: the model.
      out: a folder.
      dtype: "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K" or
        "Q6_K"; None keeps the type that most weights have.
      on_tensor: called with the name and size in bytes of each tensor written.

    Returns:
      What was written; `saved_class` is the architecture.

    Raises:
      FormatError: no architecture of llama.cpp is this model, a number is too large for the type,
        or the disk does not take it.
    """
    kind, found = type_named(dtype, files.tensors), express(files.manifest)
    tokens, notes = write_tokenizer(files, found.cfg)
    lost = rests(found.cfg, files.tensors)
    metadata = {**_general(files.manifest, found, kind), **found.keys, **lost, **tokens}
    tensors = outgoing(files, found, None if dtype is None else kind)
    notes += _said_of(tensors, kind, files, keeps=dtype is None)
    path = out / f"{_file_stem(files.manifest.name)}-{kind}.gguf"
    write_file(path, metadata, tensors, on_tensor)
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    return Written(found.arch, len(tensors), num_bytes, tuple(notes))


def _file_stem(name: str) -> str:
    """The name as part of a file's name.

    Example:
      >>> _file_stem("My model / 2")
      'My-model-2'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:100] or "model"


def _general(manifest: Manifest, found: Expressed, kind: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "general.architecture": found.arch,
        "general.type": "model",
        "general.name": manifest.name,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": _QUANTIZATION_VERSION,
        "general.alignment": DEFAULT_ALIGNMENT,
    }
    if isinstance(manifest.version, str) and manifest.version:
        said["general.version"] = manifest.version
    if family(found.arch, said) != manifest.architecture:
        # Some families are told apart by their name alone.
        said["general.basename"] = manifest.architecture
    for name in _REMARKS:
        if isinstance(remark := manifest.metadata.get(name), str):
            said[f"general.{name}"] = remark
    return said


def outgoing(files: ModelFiles, found: Expressed, kind: str | None) -> list[Outgoing]:
    """The tensors of the file, in its order, none of them read yet.

    Args:
      files: the model.
      found: how GGUF says it.
      kind: the type that weights get; None keeps what each has.
    """
    ours = with_one(found.cfg, files.tensors)
    made = {name: stored(array) for name, array in found.factors.items()}
    made |= unbind(gguf_table(found.arch, found.cfg, {}), found.cfg, ours)
    tensors = []
    for name, tensor in made.items():
        shape = tensor.shape
        own = type_of(name, shape, kind or _STORED_AS[tensor.dtype])
        tensors.append(Outgoing(name, shape, own, partial(_parts, own, name, tensor)))
    return tensors


def type_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type that a tensor of the file gets where weights are to be `kind`.

    Example:
      >>> type_of("blk.0.ffn_up.weight", (8, 576), "Q4_K")
      'Q5_0'
      >>> type_of("output_norm.weight", (576,), "Q4_K")
      'F32'
    """
    if len(shape) < 2 or _SINGLE.fullmatch(name):
        return "F32"
    columns = shape[-1]
    if columns % TYPES[kind].numbers:
        kind = _FALLBACK.get(kind, "F16")
    return kind if columns % TYPES[kind].numbers == 0 else "F16"


def _parts(kind: str, name: str, tensor: StoredTensor) -> Iterator[np.ndarray]:
    try:
        yield from written_parts(kind, tensor.read())
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error


def _said_of(tensors: list[Outgoing], kind: str, files: ModelFiles, *, keeps: bool) -> list[str]:
    """What has become of the types, one line each."""
    notes = []
    if keeps and len(own := {t.dtype for t in files.tensors.values() if len(t.shape) > 1}) > 1:
        notes.append(f"weights keep their own types: {', '.join(sorted(own))}")
    plain = ("F32", *_STORED_AS.values()) if keeps else ("F32",)
    others = Counter(t.type for t in tensors if t.type not in (kind, *plain))
    columns = sorted({t.shape[-1] for t in tensors if t.type in others})
    for other, count in others.items():
        notes.append(
            f"{count} tensors are {other}, not {kind}: their rows ({', '.join(map(str, columns))} "
            f"numbers) are no whole blocks of {TYPES[kind].numbers}; so does llama.cpp"
        )
    if kind != "F32":
        num = sum(t.type == "F32" for t in tensors)
        notes.append(f"{num} tensors are F32: norms, biases, and what else llama.cpp keeps so")
    if files.manifest.parameters.norm_unit_offset:
        notes.append(
            "scales of norms are 1 + scale there, rounded to float32; what rounding took away is "
            "beside them, for whoever reads the file with this library"
        )
    return notes
