"""Adapters as the library PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

    theirs: lora_A [R, in], lora_B [out, R], lora_magnitude_vector [out] of one Linear
    ours:   a [in.., R], b [R, out..], magnitude [out..] of one product

    theirs: lora_A [E R, in], lora_B [out, R E] of a parameter with the weights of all experts
    ours:   a [E, in, R], b [E, R, out]

A Linear that holds several of our products (GPT-2's c_attn) shares its A among them; so does a
parameter (gate_up_proj).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError
from llmasos_jax.format import folder as folders
from llmasos_jax.format.cast import cast
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import StoredTensor, open_tensors
from llmasos_jax.interop.hf.express import express
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.peftconfig import PeftConfig
from llmasos_jax.interop.hf.peftrows import (
    columns_of,
    is_linear,
    is_of_experts,
    newest,
    vector_of,
    wrappers,
)
from llmasos_jax.interop.lowrank import PEFT_CONFIG, LowRank, of_all
from llmasos_jax.interop.rows import PRODUCT, PerExpert, Product
from llmasos_jax.interop.tables import Row, expanded

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)")
_TABLE, _HEAD = "embed.table", "head.w"
_SAID = {"lora_A.weight": "a", "lora_B.weight": "b"}


@dataclass(frozen=True)
class Adapter:
    """What a PEFT folder changes of a model, by our names.

    Attributes:
      parameters: of the model with the change.
      changes: low-rank changes of products.
      replaced: tensors that take the place of the model's, or that it has not.
    """

    parameters: ModelConfig
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, StoredTensor]


def open_peft(folder: Path, config: PeftConfig, base: ModelFiles) -> ModelFiles:
    """A model with a PEFT folder's adapter merged; tensors are merged when they are read.

    Args:
      folder: of the adapter.
      config: its `adapter_config.json`.
      base: the model that it changes.

    Raises:
      FormatError: the adapter is not one of this model, or asks for what is not computed here.
    """
    adapter = read_adapter(folder, config, base.manifest)
    there = cast(base, "float32").tensors
    tensors: dict[str, StoredTensor] = {}
    for name, spec in expected(adapter.parameters).items():
        if name in adapter.replaced:
            tensors[name] = adapter.replaced[name]
        elif name == _HEAD and base.manifest.parameters.tie_embeddings:
            tensors[name] = _transposed(there[_TABLE])
        elif name not in there:
            raise FormatError(
                f'"{folder}" makes a model with {name}, which neither it nor its base has; train '
                "the adapter on a base that has it"
            )
        elif name in adapter.changes:
            read = partial(_merged, there[name], adapter.changes[name])
            tensors[name] = StoredTensor(spec.shape, "float32", read)
        else:
            tensors[name] = there[name]
    said = {"base": config.base, "rank": config.rank, "alpha": config.alpha}
    manifest = base.manifest.replace(
        name=folder.resolve().name,
        parameters=adapter.parameters,
        metadata={**base.manifest.metadata, "peft": said},
    )
    return ModelFiles(folder, manifest, MappingProxyType(tensors), base.tokenizer)


def read_adapter(folder: Path, config: PeftConfig, manifest: Manifest) -> Adapter:
    """An adapter by our names; reads no tensor of it.

    Args:
      folder: of the adapter.
      config: its `adapter_config.json`.
      manifest: of the model that it changes.

    Raises:
      FormatError: a tensor of it has no place in the model, has another shape, or is missing.
    """
    family, stored = family_of(manifest), _open(folder)
    parts, whole = _sorted_out(stored, family, str(folder))
    cfg = _with_classifier(manifest.parameters, config, family, whole)
    cfg = _untied(cfg, family, whole, str(folder))
    rows = family.table(cfg).rows
    groups = [group for group in expanded(newest(rows), cfg) if is_of_experts(group)]
    targeted = [g.theirs[0] for g in groups if config.targets_parameter(g.theirs[0])]
    called = {f"{place}.weight": name for name, place in wrappers(targeted).items()}
    parts = {called.get(name, name): part for name, part in parts.items()}
    changes: dict[str, LowRank] = {}
    replaced: dict[str, StoredTensor] = {}
    missing: list[str] = []
    left = {*parts, *whole}
    for group in expanded(rows, cfg, parts.keys() | whole.keys()):
        here = [name for name in group.theirs if name in whole]
        lacks = [n for n in group.theirs if n not in whole and config.saves(n)]
        if here or lacks:
            missing += [name for name in group.theirs if name not in whole]
            left.difference_update(here)
            if len(here) == len(group.theirs):
                replaced |= _replacing(group, cfg, whole, str(folder))
        changed = [name for name in group.theirs if name in parts]
        left.difference_update(changed)
        if len(changed) == len(group.theirs):
            changes |= _changes(group, cfg, config, parts, str(folder))
        elif changed or _is_asked_for(group, config):
            absent = [name.removesuffix(".weight") for name in group.theirs if name not in parts]
            missing += [f"{name}.lora_A.weight" for name in absent]
    if left or missing:
        what = "are missing" if missing else "have no place in the model"
        names = ", ".join(shown(name) for name in (missing or sorted(left))[:5])
        raise FormatError(
            f'"{folder}" is no adapter of this {family.name}: of its tensors {names} {what} '
            f"({len(missing or left)}); give the model that it was trained on"
        )
    return Adapter(cfg, changes, replaced)


def family_of(manifest: Manifest) -> Family:
    """The family whose names an adapter of a model has."""
    source = manifest.metadata.get("source_class")
    found = next((f for f in FAMILIES if source in f.architectures), None)
    return express(manifest).family if found is None else found


def _is_asked_for(group: Row, config: PeftConfig) -> bool:
    """Whether the config says that what a group has is changed."""
    name = group.theirs[0]
    if is_of_experts(group):
        return config.targets_parameter(name)
    if not is_linear(group):
        return False
    return config.targets_parameter(name) or config.targets_all_of(name.removesuffix(".weight"))


def _merged(tensor: StoredTensor, change: LowRank) -> np.ndarray:
    return change.merged(tensor.read())


def _open(folder: Path) -> dict[str, StoredTensor]:
    if not (folder / WEIGHTS).is_file():
        raise FormatError(
            f'"{folder}" has an {PEFT_CONFIG} and no {WEIGHTS}; save the adapter as '
            "safetensors, since other files of weights are programs"
        )
    return open_tensors(folders.file_in(folder, WEIGHTS))


def _sorted_out(
    stored: Mapping[str, StoredTensor], family: Family, where: str
) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """The parts of each changed weight, and what is replaced whole, by the table's names."""
    wrong = next((name for name in stored if not name.startswith(PREFIX)), None)
    if wrong is not None or not stored:
        raise FormatError(
            f'"{where}": {shown(str(wrong))} is not a name that PEFT writes, which begins with '
            f'"{PREFIX}"; save the adapter with save_pretrained()'
        )
    told: list[tuple[str, str | None, StoredTensor]] = []
    for name, tensor in stored.items():
        match = _PART.fullmatch(name.removeprefix(PREFIX))
        if match:
            told.append((f"{match[1]}.weight", _SAID.get(match[2], "magnitude"), tensor))
        elif ".base_layer." in name:  # which PEFT adds to the change of a table or an output layer
            module = shown(name.removeprefix(PREFIX).partition(".base_layer.")[0])
            raise FormatError(
                f'"{where}" changes {module}, and of products those of the blocks alone are read; '
                "leave it out of target_modules, or merge with PEFT (merge_and_unload)"
            )
        elif "lora_" in name:
            raise FormatError(
                f'"{where}": {shown(name)} is a kind of change that is not read here (of an '
                "embedding, or of a bias); give an adapter of linear layers"
            )
        else:
            told.append((name.removeprefix(PREFIX), None, tensor))
    names = family.rename([name for name, _, _ in told])
    parts: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for name, (_, part, tensor) in zip(names, told, strict=True):
        if part is None:
            whole[name] = _widened(tensor)
        else:
            parts.setdefault(name, {})[part] = _widened(tensor)
    return parts, whole


def _widened(tensor: StoredTensor) -> StoredTensor:
    read = lambda: tensor.read().astype(np.float32, copy=False)
    return StoredTensor(tensor.shape, "float32", read)


def _with_classifier(
    cfg: ModelConfig, config: PeftConfig, family: Family, whole: Mapping[str, StoredTensor]
) -> ModelConfig:
    """The model with the classifier that the adapter brings, if it does."""
    level = config.classifies
    if level is None or cfg.classifier.labels:
        return cfg
    if cfg.causal:
        raise FormatError(
            f'{PEFT_CONFIG}: "task_type" makes a classifier of a decoder ({family.name}), which '
            "reads the last token there and is not computed here; give one of an encoder, or train "
            'it here (objective.name="classify")'
        )
    changes: dict[str, Any] = {"head": None, "next_sentence": False, "tie_embeddings": True}
    changes["pooler"] = level == "sequence"
    trial = cfg.replace(**changes, classifier=Classifier(("0", "1"), level))
    rows = [row for row in family.table(trial).rows if row.ours == ("classifier.w",)]
    tensor = next((whole[row.theirs[0]] for row in rows if row.theirs[0] in whole), None)
    if tensor is None or len(tensor.shape) != 2:
        raise FormatError(
            f'{PEFT_CONFIG}: "task_type" says that it classifies, and its file has no '
            f"classifier of a {family.name} that is read here"
        )
    labels = tuple(f"LABEL_{i}" for i in range(tensor.shape[0]))
    return trial.replace(classifier=Classifier(labels, level))


def _untied(
    cfg: ModelConfig, family: Family, whole: Mapping[str, StoredTensor], where: str
) -> ModelConfig:
    """The model without tied embeddings if the adapter brings a table or an output layer.

    PEFT replaces one module; what was tied to it keeps the base's numbers.
    """
    if not cfg.tie_embeddings or cfg.head is None:
        return cfg
    apart = cfg.replace(tie_embeddings=False)
    ends = [row for row in family.table(apart).rows if row.ours in ((_TABLE,), (_HEAD,))]
    found = next((name for row in ends for name in row.theirs if name in whole), None)
    if found is None:
        return cfg
    if cfg.head != "linear" or cfg.encoder.num_layers:
        raise FormatError(
            f'"{where}" saves {shown(found)}, and in PEFT what this {family.name} ties to it keeps '
            "the base's numbers, which is not computed here; leave it out of modules_to_save"
        )
    return apart


def _transposed(table: StoredTensor) -> StoredTensor:
    return StoredTensor(table.shape[::-1], "float32", lambda: table.read().T)


def _replacing(
    group: Row, cfg: ModelConfig, whole: Mapping[str, StoredTensor], where: str
) -> dict[str, StoredTensor]:
    shapes = [expected(cfg)[name].shape for name in group.ours]
    theirs = [whole[name] for name in group.theirs]
    for name, tensor, shape in zip(
        group.theirs, theirs, group.arrangement.shapes(shapes), strict=True
    ):
        _check_shape(name, tensor, shape, where)
    return {
        name: StoredTensor(shape, "float32", partial(group.arrangement.take, i, theirs, shapes))
        for i, (name, shape) in enumerate(zip(group.ours, shapes, strict=True))
    }


def _changes(
    group: Row,
    cfg: ModelConfig,
    config: PeftConfig,
    parts: Mapping[str, Mapping[str, StoredTensor]],
    where: str,
) -> dict[str, LowRank]:
    """The changes of our products that a group of theirs holds."""
    how, shapes = group.arrangement, {name: expected(cfg)[name].shape for name in group.ours}
    if isinstance(how, PerExpert):  # a Linear of each, as in transformers 4
        ((ours, (_, *shape)),) = shapes.items()
        one = {ours: tuple(shape)}
        each = [_held(n, PRODUCT, one, config, parts[n], where)[ours] for n in group.theirs]
        if any((one.rank, one.scale) != (each[0].rank, each[0].scale) for one in each):
            raise FormatError(
                f'"{where}": {shown(group.theirs[0])} has another rank or alpha than another '
                "expert, and here all have one; merge with PEFT (merge_and_unload)"
            )
        return {ours: of_all(each)}
    if not (is_linear(group) or is_of_experts(group)) or not isinstance(how, Product):
        raise FormatError(
            f'"{where}": {shown(group.theirs[0])} is no linear layer and none of experts, which '
            "alone are read here"
        )
    (name,) = group.theirs
    return _held(name, how, shapes, config, parts[name], where)


def _held(
    name: str,
    how: Product,
    ours: Mapping[str, tuple[int, ...]],
    config: PeftConfig,
    parts: Mapping[str, StoredTensor],
    where: str,
) -> dict[str, LowRank]:
    """The changes of our products, of these shapes, that one Linear, or one parameter, holds."""
    wanted = {"a", "b", "magnitude"} if config.use_dora else {"a", "b"}
    if parts.keys() != wanted:
        raise FormatError(
            f'"{where}": {shown(name)} has {sorted(parts)}, and "use_dora" = '
            f"{str(config.use_dora).lower()} asks for {sorted(wanted)}"
        )
    module = name if config.targets_parameter(name) else name.removesuffix(".weight")
    shapes = list(ours.values())
    *lead, num_out, num_in = dataclasses.replace(how, is_in_first=False).shapes(shapes)[0]
    rank, count = config.rank_of(module), math.prod(lead)
    _check_shape(f"{module}.lora_A", parts["a"], (count * rank, num_in), where)
    _check_shape(f"{module}.lora_B", parts["b"], (num_out, rank * count), where)
    if "magnitude" in parts:
        _check_shape(f"{module}.lora_magnitude_vector", parts["magnitude"], (num_out,), where)
    middle = how.num_lead + how.num_in
    columns = [(*lead, rank, *shape[middle:]) for shape in shapes]
    outward = StoredTensor(
        (*lead, num_out, rank), "float32", partial(_outward, parts["b"], rank, lead)
    )
    found = {}
    for index, (product, shape) in enumerate(ours.items()):
        inside = (*shape[:middle], rank)
        magnitude = None
        if "magnitude" in parts:
            vectors = [column[1:] for column in columns]
            take = partial(vector_of(how).take, index, [parts["magnitude"]], vectors)
            magnitude = StoredTensor(shape[middle:], "float32", take)
        take = partial(columns_of(how).take, index, [outward], columns)
        found[product] = LowRank(
            StoredTensor(inside, "float32", partial(_inward, parts["a"], inside, lead)),
            StoredTensor(columns[index], "float32", take),
            config.scale_of(module),
            magnitude,
            how.num_lead,
        )
    return found


def _inward(a: StoredTensor, shape: Sequence[int], lead: Sequence[int]) -> np.ndarray:
    return a.read().reshape(*lead, shape[-1], -1).swapaxes(-1, -2).reshape(shape)


def _outward(b: StoredTensor, rank: int, lead: Sequence[int]) -> np.ndarray:
    array = b.read().reshape(-1, rank, *lead)
    return np.moveaxis(array, range(2, array.ndim), range(len(lead)))


def _check_shape(name: str, tensor: StoredTensor, shape: tuple[int, ...], where: str) -> None:
    if tensor.shape != tuple(shape):
        raise FormatError(
            f'"{where}": {shown(name)} has {list(tensor.shape)}, and the model and its config ask '
            f"for {list(shape)}; give the model that it was trained on"
        )
