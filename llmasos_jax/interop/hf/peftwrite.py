"""Low-rank changes of a model of ours as a PEFT folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError
from llmasos_jax.format import folder as folders
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.format.write import write_file, write_weights
from llmasos_jax.interop.hf.express import Expressed, express
from llmasos_jax.interop.hf.peft import PREFIX, WEIGHTS
from llmasos_jax.interop.hf.peftrows import (
    columns_of,
    is_linear,
    is_of_experts,
    is_parameter,
    newest,
    vector_of,
    wrappers,
)
from llmasos_jax.interop.lowrank import PEFT_CONFIG, LowRank
from llmasos_jax.interop.rows import Product
from llmasos_jax.interop.tables import Row, Table, expanded
from llmasos_jax.interop.written import Written

_ONE_FILE = 2**62  # bytes


@dataclass(frozen=True)
class Changed:
    """What is to be written.

    Attributes:
      manifest: of the model with the changes.
      changes: low-rank changes of its tensors, by their names.
      tensors: what is written whole, and what is saved in a module with it.
      base: what PEFT opens the model by: a path or a name on the hub.
      revision: of such a name.
      rank: R of each change.
      alpha: its scale is alpha / R, or alpha / sqrt(R).
      rank_stabilized: which of both.
      dora: whether each change has a magnitude.
    """

    manifest: Manifest
    changes: Mapping[str, LowRank]
    tensors: Mapping[str, StoredTensor]
    base: str
    revision: str | None
    rank: int
    alpha: float
    rank_stabilized: bool
    dora: bool


@dataclass(frozen=True)
class _Linear:
    """One changed Linear of theirs: its tensors by the ends of their names, and its rank.

    Experts and routers are no Linear in transformers 5, so PEFT changes their parameters; see
    `peftrows.is_parameter`.
    """

    tensors: dict[str, StoredTensor]
    rank: int
    is_parameter: bool


def said_by(manifest: Manifest) -> tuple[Expressed, ModelConfig]:
    """The class of transformers that an adapter is for, and the network that it is.

    A classifier stands in place of the heads that the base had; transformers has no class of both.

    Raises:
      FormatError: there is no such class.
    """
    cfg = manifest.parameters
    if cfg.classifier.labels and cfg.causal:
        raise FormatError(
            "a classifier on a decoder is none of the classes of transformers that are written "
            "(theirs reads a text's last token, by a matrix without a bias); write it as a model "
            "of ours (`llmasos convert`), which load_model opens"
        )
    if cfg.classifier.labels:
        has_pooler = cfg.pooler and cfg.classifier.level == "sequence"
        changes: dict[str, Any] = {"head": None, "next_sentence": False, "tie_embeddings": True}
        cfg = cfg.replace(**changes, pooler=has_pooler)
    return express(manifest.replace(parameters=cfg)), cfg


def write_peft(
    changed: Changed, out: Path, *, on_tensor: Callable[[str, int], None] | None = None
) -> Written:
    """Writes an adapter's folder.

    Args:
      changed: what to write.
      out: an empty folder.
      on_tensor: called with the name and size in bytes of each tensor written.

    Raises:
      FormatError: no class of transformers is the model, or it has no Linear for a change.
    """
    found, cfg = said_by(changed.manifest)
    table = found.family.table(cfg)
    linears = _linears(changed, found, cfg)
    saved, modules = _saved(changed, table, cfg)
    prefix = _dropped_prefix(found)
    places = {name: name.removesuffix(".weight") for name in linears}
    places |= wrappers(name for name, linear in linears.items() if linear.is_parameter)
    tensors = {
        f"{PREFIX}{places[name].removeprefix(prefix)}.{end}": tensor
        for name, linear in linears.items()
        for end, tensor in linear.tensors.items()
    }
    tensors |= {PREFIX + name.removeprefix(prefix): tensor for name, tensor in saved.items()}
    config = _config(changed, table, cfg, linears, modules)
    write_file(out / PEFT_CONFIG, (json.dumps(config, indent=2) + "\n").encode("utf-8"))
    write_weights(out, tensors, _ONE_FILE, on_tensor, kind="pt")
    os.replace(out / folders.WEIGHTS, out / WEIGHTS)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    notes = ("a PEFT folder has no names of labels: they stay with the run",) if modules else ()
    return Written(f"{found.saved_class} with PEFT", len(tensors), num_bytes, notes)


def _linears(changed: Changed, found: Expressed, cfg: ModelConfig) -> dict[str, _Linear]:
    """The changed Linears by the names of their weights."""
    linears: dict[str, _Linear] = {}
    left = dict(changed.changes)
    for group in expanded(newest(found.family.table(cfg).rows), cfg):
        touched = [name for name in group.ours if name in left]
        if not touched:
            continue
        how = group.arrangement
        if not (is_linear(group) or is_of_experts(group)) or not isinstance(how, Product):
            break
        as_parameter = is_parameter(group, cfg, found.saved_class)
        if changed.dora and as_parameter:
            raise FormatError(
                f"{touched[0]} was trained with DoRA, and PEFT has LoRA alone for experts, routers "
                "and what it takes for an expert's; write the merged model instead (--to hf)"
            )
        if changed.dora and len(touched) < len(group.ours):
            others = ", ".join(name for name in group.ours if name not in touched)
            raise FormatError(
                f"{group.theirs[0]} holds {', '.join(touched)} together with {others}, which were "
                "not trained; DoRA writes all of them or none: choose finetune.targets so"
            )
        parts, rank = _side_by_side(group, how, cfg, {n: left.pop(n) for n in touched})
        linears[group.theirs[0]] = _Linear(parts, rank, as_parameter)
    if left:
        raise FormatError(
            f"{next(iter(left))} was changed, and transformers has no one Linear for it that PEFT "
            "could change; write the merged model instead (--to hf)"
        )
    return linears


def _side_by_side(
    group: Row, how: Product, cfg: ModelConfig, changes: Mapping[str, LowRank]
) -> tuple[dict[str, StoredTensor], int]:
    """One Linear's tensors and rank; several products' changes stand in it, each in its rows."""
    rank, start = sum(change.rank for change in changes.values()), 0
    rows, columns, lengths = [], [], []
    for name in group.ours:
        change, shape = changes.get(name), expected(cfg)[name].shape
        lead, out_of = shape[: how.num_lead], shape[how.num_lead + how.num_in :]
        whole = np.zeros((*lead, rank, *out_of), np.float32)
        columns.append(stored(whole))
        if change is None:
            continue
        end = start + change.rank
        np.moveaxis(whole, how.num_lead, 0)[start:end] = np.moveaxis(
            change.b.read(), how.num_lead, 0
        )
        start = end
        rows.append(change.a.read().reshape(*lead, -1, change.rank).swapaxes(-1, -2))
        if change.magnitude is not None:
            lengths.append(change.magnitude)
    a = np.concatenate(rows, axis=-2)  # [.., R, in]
    b = columns_of(how).give(0, columns)  # [.., out, R]
    b = np.moveaxis(b, range(how.num_lead), range(2, b.ndim))
    made = {
        "lora_A.weight": a.reshape(-1, a.shape[-1]),
        "lora_B.weight": b.reshape(b.shape[0], -1),
    }
    if lengths:
        made["lora_magnitude_vector"] = vector_of(how).give(0, lengths)
    return {end: stored(np.ascontiguousarray(x)) for end, x in made.items()}, rank


def _saved(
    changed: Changed, table: Table, cfg: ModelConfig
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of a new classifier, and the module that they are in."""
    if not cfg.classifier.labels:
        return {}, []
    groups = list(expanded(table.rows, cfg))
    weight = next(group.theirs[0] for group in groups if group.ours == ("classifier.w",))
    module = weight.partition(".")[0]
    saved: dict[str, StoredTensor] = {}
    for group in groups:
        for index, name in enumerate(group.theirs):
            if name.startswith(f"{module}."):
                ours = [changed.tensors[n] for n in group.ours]
                whole = np.ascontiguousarray(group.arrangement.give(index, ours))
                saved[name] = stored(whole.astype(np.float32, copy=False))
    return saved, [module]


def _dropped_prefix(found: Expressed) -> str:
    """What the names of a base class do not begin with."""
    is_first = found.saved_class == found.family.architectures[0]
    is_base = found.saved_class.endswith("Model") and not is_first
    return found.family.base_prefix if is_base else ""


def _config(
    changed: Changed,
    table: Table,
    cfg: ModelConfig,
    linears: Mapping[str, _Linear],
    modules: Sequence[str],
) -> dict[str, Any]:
    names = _names(table, cfg)
    parameters = _ends([name for name in linears if linears[name].is_parameter], names)
    targets = _ends(
        [name.removesuffix(".weight") for name in linears if name not in parameters],
        {name.removesuffix(".weight") for name in names if name.endswith(".weight")},
    )
    ends = parameters | {f"{name}.weight": end for name, end in targets.items()}
    ranks = {ends[name]: linear.rank for name, linear in linears.items()}
    conv = any(_is_conv(group) for group in expanded(table.rows, cfg) if group.theirs[0] in linears)
    # Several products in one Linear have their ranks together, and keep their scale.
    alphas = {end: _alpha(changed, rank) for end, rank in ranks.items() if rank != changed.rank}
    return {
        "peft_type": "LORA",
        "task_type": _task(cfg),
        "base_model_name_or_path": changed.base,
        "revision": changed.revision,
        "inference_mode": True,
        "r": changed.rank,
        "lora_alpha": _alpha(changed, changed.rank),
        "lora_dropout": 0.0,
        "target_modules": sorted(set(targets.values())),
        "target_parameters": sorted(set(parameters.values())) or None,
        "modules_to_save": list(modules) or None,
        "fan_in_fan_out": conv,
        "bias": "none",
        "use_rslora": changed.rank_stabilized,
        "use_dora": changed.dora,
        "rank_pattern": {end: rank for end, rank in ranks.items() if rank != changed.rank},
        "alpha_pattern": alphas,
        "init_lora_weights": True,
    }


def _alpha(changed: Changed, rank: int) -> float:
    """What gives a change of this rank the scale of the run."""
    share = rank / changed.rank
    alpha = changed.alpha * (share**0.5 if changed.rank_stabilized else share)
    return int(alpha) if alpha == int(alpha) else alpha


def _is_conv(group: Row) -> bool:
    return isinstance(group.arrangement, Product) and group.arrangement.is_in_first


def _task(cfg: ModelConfig) -> str | None:
    if cfg.classifier.labels:
        return {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}[cfg.classifier.level]
    if cfg.encoder.num_layers:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if cfg.causal else None


def _names(table: Table, cfg: ModelConfig) -> set[str]:
    """Every tensor that the family may have, in each layer."""
    most = range(max(cfg.num_layers, cfg.encoder.num_layers))
    return {
        name.replace("{i}", str(layer))
        for written in table.rows
        for name in written.theirs
        for layer in (most if "{i}" in name else (0,))
    }


def _ends(wanted: Iterable[str], modules: set[str]) -> dict[str, str]:
    """For each module the shortest end of its name that no other module has."""
    names, found = set(wanted), {}
    others = [module for module in modules if module not in names]
    taken = {end for module in others for end in _all_ends(module)}
    for name in sorted(names):
        found[name] = next((end for end in _all_ends(name) if end not in taken), name)
    return found


def _all_ends(name: str) -> list[str]:
    """The ends of a dotted name, the shortest first.

    Example:
      >>> _all_ends("0.attn.q")
      ['q', 'attn.q', '0.attn.q']
    """
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
