"""What was trained beside a model, opened to stand beside it again: LoRA runs and PEFT folders."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmasos_jax.checkpoint.manifest import require_sound
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.config.build import from_dict
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import FormatError
from llmasos_jax.format.names import expected
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.hub.finetuned import Finetuned, weights_sha256
from llmasos_jax.hub.open import kind_of
from llmasos_jax.interop.lowrank import PEFT_CONFIG, LowRank
from llmasos_jax.nn.adapters import LORA

_HEADS = ("classifier", "pooler", "pooling")  # what a run may set beside its base's parameters


@dataclass(frozen=True)
class StoredAdapter:
    """Changes of a model's weights, read when asked for.

    Attributes:
      source: what the user called it.
      changes: low-rank changes by the names of the tensors ("layers.3.attn.q").
      replaced: tensors that take the place of the model's.
      chat_template: that it was trained with; None is the model's.
    """

    source: str
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, StoredTensor] = field(default_factory=dict)
    chat_template: str | None = None


def open_adapters(
    sources: Mapping[str, str | os.PathLike[str]], base: ModelFiles
) -> dict[str, StoredAdapter]:
    """Opens adapters of one model, by their names; reads no tensor of theirs.

    Args:
      sources: folders: of a LoRA run of ours (its `checkpoints`, one step), or as PEFT writes them.
      base: the model. Its tensors are read once where there is a run of ours, which knows the hash
        of those that it began with.

    Raises:
      FormatError: a folder is none of these, or was made on another model, or changes it in a way
        that cannot stand beside it.
      CheckpointError: a run has no whole checkpoint.
    """
    digest = functools.cache(lambda: weights_sha256(base))
    return {name: _open(Path(source), base, digest) for name, source in sources.items()}


def _open(path: Path, base: ModelFiles, digest: Callable[[], str]) -> StoredAdapter:
    folder = path.parent if path.name == PEFT_CONFIG else path
    if (folder / PEFT_CONFIG).is_file():
        return _open_peft(folder, base)
    if _is_run(path):
        return _open_run(path, base, digest)
    raise FormatError(
        f'"{path}" holds no adapter: expected the folder of a LoRA run (llmasos finetune), or a '
        f"PEFT folder with its {PEFT_CONFIG}"
    )


def _open_peft(folder: Path, base: ModelFiles) -> StoredAdapter:
    from llmasos_jax.interop.hf.peft import read_adapter
    from llmasos_jax.interop.hf.peftconfig import read_peft_config

    found = read_adapter(folder, read_peft_config(folder), base.manifest)
    _refuse_added(folder, found.parameters, base)
    return StoredAdapter(str(folder), found.changes, found.replaced)


def _refuse_added(path: Path, parameters: ModelConfig, base: ModelFiles) -> None:
    """Raises FormatError if the model with an adapter has tensors that the model has not."""
    added = expected(parameters).keys() - expected(base.manifest.parameters).keys()
    if added:
        raise FormatError(
            f'"{path}" added {", ".join(sorted(added))}, which the model has not; load it by itself'
        )


def _refuse_other(path: Path, config: Config, there: ModelConfig) -> None:
    """Raises FormatError if a model with the run's weights is another one by its parameters."""
    from llmasos_jax.interop.hf.express import differences

    heads = {name: getattr(there, name) for name in _HEADS}
    differ = differences(config.model.replace(**heads), there)
    if differ:
        raise FormatError(
            f'"{path}" was trained on "{config.finetune.base}" with {differ[0]}, as this model has '
            f"it ({len(differ)} differ); load it with the model that it began with"
        )


def _is_run(path: Path) -> bool:
    try:
        return path.is_dir() and kind_of(path) == "training"
    except FormatError:  # no model at all, which an adapter is not either
        return False


def _open_run(path: Path, base: ModelFiles, digest: Callable[[], str]) -> StoredAdapter:
    state = StoredState(path)
    require_sound(state.folder)
    run = Finetuned(state, from_dict(state.config), base)
    finetune = run.config.finetune
    if finetune.base is None or finetune.method != "lora":
        what = "was not fine-tuned" if finetune.base is None else f"moved ({finetune.method}) them"
        raise FormatError(
            f'"{path}" has the weights of a model that {what}, no low-rank change; load it by '
            "itself: load_model takes it as it is"
        )
    if finetune.quantize is not None:
        raise FormatError(
            f'"{path}" was trained beside weights of finetune.quantize="{finetune.quantize}", and '
            "these are not rounded so; load it by itself, which merges it into what it was trained "
            "on"
        )
    if digest() != finetune.base_sha256:
        raise FormatError(
            f'"{path}" was trained on "{finetune.base}" with the weights '
            f"{str(finetune.base_sha256)[:12]} (finetune.base_sha256), and this model's are "
            f"{digest()[:12]}; load it with the model that it began with"
        )
    _refuse_other(path, run.config, base.manifest.parameters)
    _refuse_added(path, run.config.model, base)
    names = expected(base.manifest.parameters)
    found = {name: change for name in names if (change := run.change(name))}
    replaced = {name: tensor for name in names if (tensor := run.replaced(name))}
    return StoredAdapter(str(path), found, replaced, finetune.chat_template)


def product_of(name: str) -> str:
    """The name of a product without stack and layer, as targets call it, of a tensor's.

    Example:
      >>> product_of("layers.3.attn.q"), product_of("encoder.layers.0.mlp.up")
      ('attn.q', 'mlp.up')
    """
    parts = name.removeprefix("encoder.").split(".")
    return ".".join(parts[2:] if parts[0] == "layers" else parts)


def leaf(name: str, part: str) -> str:
    """The name of a part of a tensor's change.

    Example:
      >>> leaf("layers.3.attn.q", "a")
      'layers.3.attn.q_lora.a'
    """
    return f"{name}{LORA}.{part}"
