"""What `--search` tries: changes of a config, pruned by what is known before compiling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from llmasos_jax.config.build import from_dict, to_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.count import count_parameters
from llmasos_jax.plan.chips import Topology

Change = Mapping[str, Any]

_LONG = 16384


def changed(cfg: Config, change: Change) -> Config:
    """A config with fields set by their dotted path.

    Raises:
      ConfigError: they break a rule.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> changed(Config(ModelConfig(256, 64, 2)), {"train.remat": "full"}).train.remat
      'full'
    """
    values = to_dict(cfg)
    for path, value in change.items():
        group, _, name = path.partition(".")
        values[group][name] = list(value) if isinstance(value, tuple) else value
    return from_dict(values)


def meshes(cfg: Config, topology: Topology) -> Iterator[Change]:
    """Meshes for a topology: FSDP along its axes, with ways of the others inside of the last."""
    shape = tuple(size for size in topology.shape if size > 1) or (1,)
    whole = (*shape[:-1], shape[-1] * topology.chip.devices)
    yield _mesh(whole)
    model = cfg.model
    for ways in (2, 4, 8):
        if whole[-1] % ways == 0 and model.query_heads % ways == 0 and model.kv_heads % ways == 0:
            yield _mesh((*whole[:-1], whole[-1] // ways), tensor=ways)
    if len(whole) > 1:
        yield _mesh(whole[1:], data=whole[0] * topology.slices)
    if cfg.data.sequence_length >= _LONG:
        for ways in (2, 4, 8):
            if whole[-1] % ways == 0:
                yield _mesh((*whole[:-1], whole[-1] // ways), context=ways)
    for ways in (4, 8, 16):
        if model.experts.count and model.experts.count % ways == 0 and whole[-1] % ways == 0:
            yield _mesh((*whole[:-1], whole[-1] // ways), expert=ways)


def _mesh(fsdp: tuple[int, ...], **axes: int) -> Change:
    fsdp = tuple(n for n in fsdp if n > 1) or (1,)
    sizes = {"data": None, "tensor": 1, "context": 1, "expert": 1, "pipeline": 1} | axes
    # Without stages the settings of stages are refused.
    others = {"mesh.preset": None, "mesh.microbatches": None, "mesh.pipeline_repeats": 1}
    return others | {"mesh.fsdp": fsdp} | {f"mesh.{n}": s for n, s in sizes.items()}


def remats(cfg: Config, topology: Topology) -> Iterator[Change]:
    """What is kept for the backward pass, each also with the batch in twice as many parts."""
    steps = cfg.train.accumulate_steps
    for times in (1, 2) if _rows(cfg, topology) % 2 == 0 else (1,):
        for change in _kept(cfg):
            yield change if times == 1 else {**change, "train.accumulate_steps": 2 * steps}


def _kept(cfg: Config) -> Iterator[Change]:
    yield _remat("full")
    qkv, outs = ("q", "k", "v"), ("attention", "attention_out")
    wide = ("gate", "up") if cfg.model.is_gated else ("up",)
    saves = [("k", "v"), ("q", "k"), wide[:1], qkv, (*qkv, "attention_out"), (*qkv, "attention")]
    saves += [(*qkv, *outs), (*qkv, wide[0]), wide, (*qkv, *wide), (*qkv, *outs, *wide)]
    for save in dict.fromkeys(saves):
        yield _remat("tags", save)
    yield _remat("tags", ("q", "k"), ("v",))
    yield _remat("tags", qkv, ("block",))
    yield _remat("none")


def _remat(name: str, save: tuple[str, ...] = (), offload: tuple[str, ...] = ()) -> Change:
    return {"train.remat": name, "train.remat_save": save, "train.remat_offload": offload}


def _rows(cfg: Config, topology: Topology) -> int:
    """Of a device, in one part of a batch."""
    inner = cfg.mesh.tensor * cfg.mesh.context
    return cfg.train.batch_size * inner // (topology.num_devices * cfg.train.accumulate_steps)


def losses(cfg: Config) -> Iterator[Change]:
    """Whether the output layer is computed in parts."""
    if cfg.objective.name == "causal" and cfg.data.sequence_length >= 512:
        chunk = None if cfg.train.loss_chunk else cfg.data.sequence_length // 4
        yield {"train.loss_chunk": chunk}


def blocks(cfg: Config) -> Iterator[Change]:
    """Blocks of the attention kernel that divide the sequence."""
    for size in (1024, 256):
        if cfg.data.sequence_length % size == 0 and cfg.kernels.block_q != size:
            names = ("block_q", "block_kv", "block_q_backward", "block_kv_backward")
            yield {f"kernels.{name}": size for name in names}


def parts(cfg: Config) -> Iterator[Change]:
    """The same batch in half as many parts, one after the other; more of them are in `remats`."""
    steps = cfg.train.accumulate_steps
    if steps % 2 == 0:
        yield {"train.accumulate_steps": steps // 2}


def batches(cfg: Config) -> Iterator[Change]:
    """Twice and half the batch: another run, so tried last and said."""
    yield {"train.batch_size": 2 * cfg.train.batch_size}
    if cfg.train.batch_size % 2 == 0:
        yield {"train.batch_size": cfg.train.batch_size // 2}


def reason_against(cfg: Config, topology: Topology) -> str | None:
    """Why a config needs not be compiled; None where it has to be.

    Only what is sure: the mesh does not cut the batch, or weights and moments alone are more than
    the chip has.
    """
    mesh = cfg.mesh
    inner = mesh.tensor * mesh.context
    split = math.prod(mesh.fsdp) * mesh.expert * mesh.pipeline
    devices = topology.num_devices
    data = mesh.data if mesh.data is not None else devices // (split * inner)
    if mesh.preset is None and data * split * inner != devices:
        return f"its mesh is of {data * split * inner} devices, not {devices}"
    parts = (devices // inner) * cfg.train.accumulate_steps
    if mesh.preset is None and cfg.train.batch_size % parts:
        return f"its batch of {cfg.train.batch_size} is not a multiple of {parts}"
    if mesh.preset is None:
        weight = 4 if cfg.precision.weights == "float32" else 2 + 4 * cfg.precision.master
        moment = {"float32": 4, "bfloat16": 2, "int8": 1}[cfg.precision.moments]
        moments = {"adamw": 2, "lion": 1}.get(cfg.optim.name, 0)
        ways = split * mesh.context * mesh.tensor
        needed = count_parameters(cfg.model) * (weight + moments * moment) / ways
        if needed > topology.chip.program_bytes:
            return f"weights and optimizer alone take {needed / 2**30:.1f} GiB"
    return None


def described(change: Change) -> str:
    """A change in a few words, what is off left out.

    Example:
      >>> described({"mesh.fsdp": (16, 8), "mesh.tensor": 2, "mesh.context": 1})
      'fsdp 16x8, tensor 2'
    """
    words = []
    for path, value in change.items():
        name = path.rpartition(".")[2]
        if path.startswith("mesh.") and (value is None or value in (1, (1,))):
            continue
        if path.startswith("kernels.") and name != "block_q":
            continue
        if isinstance(value, tuple):
            if not value:
                continue
            value = ("x" if name == "fsdp" else ", ").join(map(str, value))
        said = {"block_q": "kernel blocks", "batch_size": "batch", "remat_save": "keeps"}
        said |= {"accumulate_steps": "parts", "remat_offload": "on the host"}
        if value == "tags":  # what follows says it
            continue
        words.append(f"{said.get(name, name.replace('_', ' '))} {value}")
    return ", ".join(words) or "as it is"


def applied(cfg: Config, change: Change) -> Config | str:
    """The changed config, or why it is none."""
    try:
        return changed(cfg, change)
    except ConfigError as error:
        return str(error)
