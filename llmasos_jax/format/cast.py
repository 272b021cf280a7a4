"""A model's tensors in another dtype, converted when they are read."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import numpy as np

from llmasos_jax.errors import FormatError, did_you_mean
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import CODES, DTYPES, StoredTensor

_LARGEST = {"float16": float(np.finfo(np.float16).max)}


def cast(files: ModelFiles, dtype: str) -> ModelFiles:
    """The same model with each tensor rounded to a dtype, one at a time, as it is read.

    Args:
      files: the model.
      dtype: "float32", "bfloat16" or "float16".

    Raises:
      FormatError: there is no such dtype; when it is read, a number is too large for it.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.format.manifest import Manifest
      >>> from llmasos_jax.format.tensorfile import stored
      >>> tensors = {"embed.table": stored(np.ones((40, 64), np.float32))}
      >>> files = ModelFiles(None, Manifest("m", ModelConfig(40, 64, 1)), tensors, None)
      >>> str(cast(files, "bfloat16").tensors["embed.table"])
      'bfloat16[40,64]'
    """
    if dtype not in CODES:
        raise FormatError(f'there is no dtype "{dtype}"{did_you_mean(dtype, CODES)}')
    tensors = {name: _cast(name, tensor, dtype) for name, tensor in files.tensors.items()}
    return dataclasses.replace(files, tensors=MappingProxyType(tensors))


def _cast(name: str, tensor: StoredTensor, dtype: str) -> StoredTensor:
    if tensor.dtype == dtype:
        return tensor

    def read() -> np.ndarray:
        values = tensor.read()
        largest = _LARGEST.get(dtype)
        if largest is not None and values.size:
            most = float(np.abs(values.astype(np.float32, copy=False)).max())
            if most > largest:
                raise FormatError(
                    f"{name} holds {most:.4g}, and {dtype} ends at {largest:.0f}; take bfloat16"
                )
        return values.astype(DTYPES[CODES[dtype]])

    return StoredTensor(tensor.shape, dtype, read)
