"""A fine-tuning run seen as a model: its base, and the weights that it moved.

Its checkpoints hold what it moved alone. Low-rank changes are merged one tensor at a time, when it
is read; everything is float32, as the run computed it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmasos_jax.checkpoint.manifest import require_sound
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.config.build import from_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import CheckpointError, ConfigError, FormatError, HubError
from llmasos_jax.format.cast import cast
from llmasos_jax.format.names import check_tensors, expected, place_of
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.format.training import open_training, run_model, weight_sources
from llmasos_jax.interop.lowrank import LowRank
from llmasos_jax.models.adapters import adapters_of
from llmasos_jax.models.codes import encode
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.nn.adapters import LORA, SCALES, dequantized, each
from llmasos_jax.progress import Progress
from llmasos_jax.train.trained import is_trained, parted
from llmasos_jax.train.weights import by_path

_FLOAT32 = "float32"
_SHOWN = 5


def weights_sha256(files: ModelFiles, name: str = "the base") -> str:
    """A hash of all tensors of a model, called `name`: names, types, shapes and numbers."""
    digest = hashlib.sha256()
    with Progress(f"Reading {name}", len(files.tensors)) as bar:
        for name, tensor in sorted(files.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(np.ascontiguousarray(tensor.read()).view(np.uint8).data)
            bar.advance(1)
    return digest.hexdigest()


def open_run(
    source: str | Path, step: int | None = None, *, allow_code: bool = False
) -> ModelFiles:
    """Opens a training run of any kind as a model; reads no weights of the run.

    Args:
      source: a training folder, its `checkpoints` folder, or one step folder.
      step: which step; None takes the newest.
      allow_code: as in `hub.open.open_model`.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
      FormatError: the checkpoint's weights are not those of its config; its base is not there, or
        has other weights than the run began with.
    """
    state = StoredState(Path(source), step)
    if from_dict(state.config).finetune.base is None:
        return open_training(source, step, allow_code=allow_code)
    require_sound(state.folder)
    return open_finetuned(state, allow_code=allow_code).files


def open_finetuned(
    state: StoredState, *, allow_code: bool = False, is_checked: bool = False
) -> Finetuned:
    """A fine-tuning run's checkpoint and its base, whose weights are compared with their hash.

    Args:
      state: the checkpoint.
      allow_code: as in `hub.open.open_model`.
      is_checked: whether they have just been compared, which reads all of them.

    Raises:
      FormatError: the base is not there, or has other weights than the run began with.
    """
    from llmasos_jax.hub.open import open_model  # which opens runs through this module

    config = from_dict(state.config)
    name, wanted = config.finetune.base, config.finetune.base_sha256
    try:
        base = open_model(str(name), allow_code=allow_code)
    except (FormatError, HubError, CheckpointError, RecursionError) as error:
        raise FormatError(
            f'{state.folder} has what a run changed in "{name}", and that cannot be opened '
            f"({error}); put it back, a relative path from where the run was started"
        ) from error
    found = str(wanted) if is_checked else weights_sha256(base)
    if found != wanted:
        raise FormatError(
            f'{state.folder} has what a run changed in "{name}" with the weights '
            f"{str(wanted)[:12]} (finetune.base_sha256), and there are {found[:12]} now; put back "
            "the model that it began with"
        )
    return Finetuned(state, config, base, allow_code)


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuning run.

    Attributes:
      state: its checkpoint.
      config: its config.
      base: the model that it began with.
      allow_code: as in `hub.open.open_model`.
    """

    state: StoredState
    config: Config
    base: ModelFiles
    allow_code: bool = False

    @cached_property
    def definition(self) -> ModelDef:
        """The model as it was trained, adapters beside its products."""
        try:
            adapters = adapters_of(self.config.finetune)
            definition = ModelDef(self.config.model, scan_layout(self.config.model), adapters)
            _ = definition.shapes
        except ConfigError as error:
            raise FormatError(f"{self.state.folder}: {error}") from error
        return definition

    @cached_property
    def moved(self) -> Mapping[str, str]:
        """Where the checkpoint has each leaf that the run moved, by its path.

        Raises:
          FormatError: it lacks one, has one more, or one of another shape.
        """
        sources = weight_sources(self.state.leaves)
        shapes = by_path(parted(self.definition.shapes, is_trained(self.config))[0])
        for path in [*shapes, *(sources.keys() - shapes.keys())]:
            wanted = tuple(shapes[path].shape) if path in shapes else None
            found = self.state.leaves[sources[path]].shape if path in sources else None
            if wanted != found:
                raise FormatError(
                    f"{self.state.folder}: its config says that the run moved {path} as {wanted}, "
                    f"and the checkpoint has it as {found} (None: not at all); they do not belong "
                    "together"
                )
        return sources

    @cached_property
    def files(self) -> ModelFiles:
        """The model that came out."""
        cfg, finetune = self.config.model, self.config.finetune
        made = run_model(self.state, self.config, allow_code=self.allow_code)
        template = finetune.chat_template
        generation = dataclasses.replace(self.base.manifest.generation, chat_template=template)
        how: dict[str, Any] = {
            "base": finetune.base,
            "base_sha256": finetune.base_sha256,
            "method": finetune.method,
        }
        if finetune.teacher is not None:
            how |= {"teacher": finetune.teacher, "teacher_sha256": finetune.teacher_sha256}
        if finetune.quantize is not None:
            how["merged_onto"] = f"the base's products in {finetune.quantize}, as they were trained"
        manifest = made.manifest.replace(
            architecture=self.base.manifest.architecture,
            generation=generation,
            metadata={**made.manifest.metadata, "finetune": how},
        )
        tensors = {name: found for name in expected(cfg) if (found := self._tensor(name))}
        check_tensors(cfg, tensors, f'{self.state.folder} on "{finetune.base}"')
        return dataclasses.replace(made, manifest=manifest, tensors=MappingProxyType(tensors))

    def change(self, name: str) -> LowRank | None:
        """The low-rank change of a tensor, by its name in files; None where it has none."""
        path, row = place_of(name, self.definition.layout)
        if f"{path}{LORA}/a" not in self.moved:
            return None
        a, b = (self._stored(f"{path}{LORA}/{part}", row) for part in "ab")
        has_magnitude = f"{path}{LORA}/magnitude" in self.moved
        magnitude = self._stored(f"{path}{LORA}/magnitude", row) if has_magnitude else None
        return LowRank(a, b, self.config.finetune.scale, magnitude, self._leads[path])

    def replaced(self, name: str) -> StoredTensor | None:
        """A tensor that the run moved itself, float32, by its name in files."""
        path, row = place_of(name, self.definition.layout)
        return self._stored(path, row) if path in self.moved else None

    def kept(self, name: str) -> StoredTensor | None:
        """A tensor of the base as the run computed with it, float32; None where it has none."""
        if name not in self._base:
            return None
        tensor, path = self._base[name], place_of(name, self.definition.layout)[0]
        if path + SCALES not in self._shapes:
            return tensor
        how = (self._contractions[path], self._leads[path], self._shapes[path].dtype)
        return StoredTensor(tensor.shape, _FLOAT32, partial(_coded, tensor, *how))

    def _tensor(self, name: str) -> StoredTensor | None:
        moved = self.replaced(name)
        kept = self.kept(name) if moved is None else None
        change = None if kept is None else self.change(name)
        if kept is None or change is None:
            return moved or kept
        return StoredTensor(kept.shape, _FLOAT32, lambda: change.merged(kept.read()))

    def _stored(self, path: str, row: int | None) -> StoredTensor:
        source = self.moved[path]
        shape = self.state.leaves[source].shape[0 if row is None else 1 :]
        read = functools.partial(self.state.read, source, row)
        return StoredTensor(shape, _FLOAT32, lambda: read().astype(np.float32, copy=False))

    @cached_property
    def _base(self) -> Mapping[str, StoredTensor]:
        return cast(self.base, _FLOAT32).tensors

    @cached_property
    def _shapes(self) -> Mapping[str, Any]:
        return by_path(self.definition.shapes)

    @cached_property
    def _contractions(self) -> Mapping[str, int]:
        return by_path(self.definition.contractions)

    @cached_property
    def _leads(self) -> Mapping[str, int]:
        return by_path(self.definition.leads)


def _coded(tensor: StoredTensor, num_in: int, num_lead: int, dtype: Any) -> np.ndarray:
    """What a weight's codes stand for, float32."""
    codes, scales = encode(tensor.read(), num_in, dtype, num_lead=num_lead)
    widened = each(partial(dequantized, num_in=num_in), num_lead)
    return np.asarray(widened(jnp.asarray(codes), jnp.asarray(scales)))
