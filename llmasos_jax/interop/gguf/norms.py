"""Norms that multiply by 1 + scale (Gemma): our files hold the scale, GGUF files the sum.

The sum is rounded to float32, and what the rounding took away is a float32 number too (Knuth's
two-sum). Where it is not zero a file of ours has it beside, under a key that llama.cpp passes over,
so that every scale comes back to the bit:

    scale 1e-9 | in the tensor 1.0 | llmasos.norm_rest.final_norm.scale 1e-9
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.gguf.keys import OURS, Keys

# Architectures whose published models say 1 + scale: their converter adds the 1.
_ADDED = ("gemma", "gemma2", "gemma3")
_OFFSET, _REST = f"{OURS}norm_unit_offset", f"{OURS}norm_rest."
# Norms inside of latent attention never have the 1.
_NEVER = (".kv_norm.scale", ".q_down_norm.scale")
_ONE = np.float32(1)


def offset_key(arch: str, cfg: ModelConfig) -> dict[str, bool]:
    """What says that a model's norms are not those of its architecture; empty where they are.

    Example:
      >>> cfg = ModelConfig(9, 8, 1, norm_unit_offset=True)
      >>> offset_key("gemma", cfg), offset_key("llama", cfg)
      ({}, {'llmasos.norm_unit_offset': True})
    """
    usual = arch in _ADDED
    return {} if cfg.norm_unit_offset == usual else {_OFFSET: cfg.norm_unit_offset}


def read_offset(keys: Keys) -> bool:
    """Whether the model that is read says 1 + scale.

    Raises:
      FormatError: the file's own key for it is neither true nor false.
    """
    found = keys.ours().get(_OFFSET, keys.arch in _ADDED)
    if not isinstance(found, bool):
        raise keys.error(f"{_OFFSET} = {shown(found)} must be true or false")
    return found


def with_one(cfg: ModelConfig, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Our tensors with the sums that a file holds, float32, where norms say 1 + scale."""
    if not cfg.norm_unit_offset:
        return tensors
    return {n: _changed(t, _sum) if _is_scale(n) else t for n, t in tensors.items()}


def rests(cfg: ModelConfig, tensors: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    """What rounding took from the sums, float32 by key; tensors that lost nothing have none.

    Example:
      >>> from llmasos_jax.format.tensorfile import stored
      >>> scale = stored(np.array([0.25, 1e-9], np.float32))
      >>> rests(ModelConfig(9, 2, 1, norm_unit_offset=True), {"final_norm.scale": scale})
      {'llmasos.norm_rest.final_norm.scale': array([0.e+00, 1.e-09], dtype=float32)}
    """
    if not cfg.norm_unit_offset:
        return {}
    found = {f"{_REST}{n}": _rest(t.read()) for n, t in tensors.items() if _is_scale(n)}
    return {key: rest for key, rest in found.items() if rest.view(np.uint32).any()}


def without_one(
    keys: Keys, cfg: ModelConfig, tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The scales of a file's sums: those that were written, if it has what rounding took.

    In other files the 1 is subtracted in float32, which rounds nothing where the sum is of a
    float32 scale.

    Args:
      keys: of the file.
      cfg: the model.
      tensors: as the file has them, by our names.

    Raises:
      FormatError: a key of ours is not known, or is not the rest of one of these norms.
    """
    known = {n for n in tensors if _is_scale(n)} if cfg.norm_unit_offset else set()
    found: dict[str, np.ndarray] = {}
    for key, rest in keys.ours().items():
        if key == _OFFSET:
            continue
        name = key.removeprefix(_REST)
        if name == key or name not in known:
            raise keys.error(f"{shown(key)} is no key that this version reads, or of no norm here")
        size = tensors[name].shape
        right = isinstance(rest, np.ndarray) and rest.dtype == np.float32
        if not right or rest.size != np.prod(size) or not np.isfinite(rest).all():
            raise keys.error(f"{key} must be {np.prod(size)} finite float32 numbers")
        found[name] = rest
    return {
        name: _changed(tensor, partial(_difference, rest=found.get(name)))
        if name in known
        else tensor
        for name, tensor in tensors.items()
    }


def _is_scale(name: str) -> bool:
    return name.endswith(".scale") and not name.endswith(_NEVER)


def _changed(tensor: StoredTensor, change: Any) -> StoredTensor:
    return StoredTensor(tensor.shape, "float32", lambda: change(np.asarray(tensor.read())))


def _sum(scale: np.ndarray) -> np.ndarray:
    return scale.astype(np.float32) + _ONE


def _rest(scale: np.ndarray) -> np.ndarray:
    """1 + scale without its float32 sum, flat."""
    s = scale.astype(np.float32).reshape(-1)
    total = s + _ONE
    part = total - _ONE
    # Where the sum is 1 the rest is the scale, even a zero with its sign.
    return np.where(total == _ONE, s, (_ONE - (total - part)) + (s - part))


def _difference(total: np.ndarray, rest: np.ndarray | None) -> np.ndarray:
    if rest is None:
        return total.astype(np.float32) - _ONE
    # In float64 nothing is rounded before the end, where the scale is a float32 number.
    rest = rest.reshape(total.shape)
    back = (total.astype(np.float64) - 1 + rest).astype(np.float32)
    return np.where(total == _ONE, rest, back)
