"""The model that a fine-tuning run starts from: its parameters, tokenizer and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ConfigError
from llmasos_jax.format.names import expected, place_of
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.hub.finetuned import weights_sha256
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.codes import encode
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.adapters import SCALES
from llmasos_jax.train.weights import by_path, map_named
from llmasos_jax.types import Tree


@dataclass(frozen=True)
class Base:
    """An opened model.

    Attributes:
      source: what the user called it.
      files: its manifest and its tensors, which are read when asked for.
      tokenizer: its own.
      teacher: the model that the run imitates, where it does.
    """

    source: str
    files: ModelFiles
    tokenizer: Tokenizer
    teacher: Base | None = None

    @property
    def parameters(self) -> ModelConfig:
        """What it is."""
        return self.files.manifest.parameters

    @cached_property
    def sha256(self) -> str:
        """A hash of all tensors: names, types, shapes and numbers."""
        return weights_sha256(self.files, self.source)

    def read(self, definition: ModelDef, abstract: Tree) -> tuple[Tree, list[str]]:
        """The weights at the leaves of `abstract`, in its dtypes and shardings.

        Args:
          definition: of the run's model.
          abstract: some of its leaves, as ShapeDtypeStructs with shardings; of an integer type
            where codes are wanted, whose scales stand beside them.

        Returns:
          Those that this model has, and the paths ("classifier/w") of those that it has not.
        """
        rows = self._rows(definition)
        missing: list[str] = []
        codes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        contractions: dict[str, int] = by_path(definition.contractions)
        leads: dict[str, int] = by_path(definition.leads)

        def fill(path: tuple[str, ...], leaf: Any) -> Any:
            name = "/".join(path)
            of_codes = name.removesuffix(SCALES)
            if of_codes not in rows:
                missing.append(name)
                return None
            if name != of_codes:
                return _placed(codes.pop(of_codes)[1], leaf)
            if jax.numpy.issubdtype(leaf.dtype, jax.numpy.integer):
                whole = _stacked(rows[name], np.dtype(np.float32))
                num_lead = leads[name] + (rows[name][0][0] is not None)
                found = encode(whole, contractions[name], leaf.dtype, num_lead=num_lead)
                codes[name] = found
                return _placed(found[0], leaf)
            return _placed(_stacked(rows[name], leaf.dtype), leaf)

        tree = map_named(fill, abstract)
        return _without_none(tree), missing

    def _rows(self, definition: ModelDef) -> dict[str, list[tuple[int | None, StoredTensor]]]:
        """By a leaf's path: the tensors of its layers, in order."""
        found: dict[str, list[tuple[int | None, StoredTensor]]] = {}
        for name in expected(definition.cfg):
            path, row = place_of(name, definition.layout)
            if name in self.files.tensors:
                found.setdefault(path, []).append((row, self.files.tensors[name]))
        return {path: sorted(rows, key=lambda pair: pair[0] or 0) for path, rows in found.items()}


def open_base(source: str, *, field: str = "finetune.base", allow_code: bool = False) -> Base:
    """Opens a model to be fine-tuned, or to learn from; reads no tensor.

    Args:
      source: whatever `load_model` reads.
      field: of the config, which names it.
      allow_code: as there.

    Raises:
      ConfigError: it has no tokenizer.
      FormatError, HubError, CheckpointError: it cannot be opened.
    """
    files = open_model(source, allow_code=allow_code)
    if files.tokenizer is None:
        raise ConfigError(
            f'{field}="{source}" has no tokenizer, so it can read no text; give a model with one'
        )
    return Base(source, files, files.tokenizer.load(allow_code=allow_code))


def _stacked(rows: list[tuple[int | None, StoredTensor]], dtype: Any) -> np.ndarray:
    arrays = (tensor.read().astype(dtype) for _, tensor in rows)
    return next(arrays) if rows[0][0] is None else np.stack(list(arrays))


def _placed(array: np.ndarray, leaf: Any) -> jax.Array:
    if array.shape != leaf.shape:
        raise ConfigError(
            f"the base has a weight of the shape {array.shape} where the run's model has "
            f"{leaf.shape}; leave config.model to the base"
        )
    whole = np.ascontiguousarray(array.astype(leaf.dtype))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: whole[part])


def _without_none(tree: Mapping[str, Any]) -> Tree:
    kept = {k: _without_none(v) if isinstance(v, dict) else v for k, v in tree.items()}
    return {k: v for k, v in kept.items() if not (v is None or (isinstance(v, dict) and not v))}
