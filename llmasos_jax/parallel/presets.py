"""Common meshes by name: which axes take the devices that there are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from llmasos_jax.config.devices import MeshConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.slices import count_slices, split_slices

_DEFAULT = MeshConfig()
# Those that stand nearest on the torus first.
_AXES = ("tensor", "context", "expert", "fsdp", "pipeline", "data")
# How axes are used, not how large they are: read from the config itself.
_OF_THE_CONFIG = ("context_exchange", "microbatches", "pipeline_repeats")


@dataclass(frozen=True)
class Preset:
    """Which axes take the devices.

    Attributes:
      text: what it is good for.
      rest: the axis that takes the devices which the others leave.
      at_most: size of each other axis where the config does not set one. An axis takes the largest
        divisor of its size that the devices have room for, so that one device is enough for all.
    """

    text: str
    rest: str = "fsdp"
    at_most: Mapping[str, int] = field(default_factory=dict)


TABLE: Mapping[str, Preset] = MappingProxyType(
    {
        "data": Preset("small models: each device has all weights", "data"),
        "fsdp": Preset("most models: weights are cut up, one axis per axis of the torus"),
        "tp": Preset("generation: heads and MLP width are cut up", "tensor"),
        "cp": Preset("very long sequences: tokens are cut up", "context"),
        "ep": Preset("many small experts", "expert"),
        "pp": Preset("stages of layers on slowly joined devices", "pipeline"),
        "hsdp": Preset("replicas of `fsdp`, one for each slice", "fsdp", {"data": 1}),
        "data_tp": Preset("replicas with heads and MLP width cut up", "data", {"tensor": 4}),
        "fsdp_tp": Preset("few rows for many devices", "fsdp", {"tensor": 4}),
        "fsdp_cp": Preset("long sequences of large models", "fsdp", {"context": 4}),
        "fsdp_ep": Preset("mixtures of experts", "fsdp", {"expert": 8}),
        "fsdp_tp_cp": Preset("long sequences, few rows", "fsdp", {"tensor": 4, "context": 4}),
        "fsdp_tp_ep": Preset("mixtures of wide experts", "fsdp", {"tensor": 4, "expert": 8}),
        "pp_fsdp": Preset("stages, each of them cut up", "fsdp", {"pipeline": 4}),
        "pp_fsdp_tp": Preset("the largest models", "fsdp", {"pipeline": 4, "tensor": 4}),
    }
)


def mesh_config(cfg: MeshConfig, devices: Sequence[Any]) -> MeshConfig:
    """The sizes that a preset gives these devices; a config without a preset is returned as it is.

    A size in the config stands in the place of the preset's own, for the axes that the preset
    names: `preset="fsdp_tp", tensor=8` is at most 8 ways of `tensor`, and `fsdp` takes the rest.
    Several slices are a factor of `slice_axis`.

    Args:
      cfg: `preset` is a row of `TABLE`, or `"package.module:name"` of a `Preset`, or of a function
        `(MeshConfig, devices) -> MeshConfig`.
      devices: of JAX; TPUs know their places on a torus.

    Raises:
      ConfigError: no such preset, or a size for an axis that is not for the config to say.

    Example:
      >>> mesh_config(MeshConfig(preset="fsdp_tp", tensor=2), range(8)).fsdp
      (4,)
      >>> mesh_config(MeshConfig(preset="fsdp_tp", tensor=2), range(1)).tensor
      1
    """
    if cfg.preset is None:
        return cfg
    found: Any = resolve(cfg.preset, TABLE, "mesh.preset")
    if isinstance(found, Preset):
        return _resolved(cfg, found, devices)
    made = _call(found, cfg, devices)
    if not isinstance(made, MeshConfig) or made.preset is not None:
        raise ConfigError(
            f'mesh.preset="{cfg.preset}" gives {made!r}; it has to be a Preset, or a function '
            "(MeshConfig, devices) to a MeshConfig whose preset is None"
        )
    for name in _OF_THE_CONFIG:
        if getattr(made, name) not in (getattr(_DEFAULT, name), getattr(cfg, name)):
            raise ConfigError(
                f'mesh.preset="{cfg.preset}" gives {name}={getattr(made, name)!r}, which is not '
                f"for a preset to say; set mesh.{name} in the config"
            )
    return made


def _call(found: Any, cfg: MeshConfig, devices: Sequence[Any]) -> Any:
    is_function = isinstance(found, Callable) and not isinstance(found, type)
    return found(cfg, devices) if is_function else found


def _resolved(cfg: MeshConfig, preset: Preset, devices: Sequence[Any]) -> MeshConfig:
    _check_sizes(cfg, preset)
    slices = cfg.slices if cfg.slices > 1 else count_slices(devices)
    dims = torus(split_slices(devices, slices)[0])
    sizes: dict[str, int] = dict.fromkeys(_AXES, 1)
    for axis in _AXES:
        if axis in preset.at_most:
            wanted = getattr(cfg, axis)
            most = preset.at_most[axis] if wanted == getattr(_DEFAULT, axis) else wanted
            # Slices are parts of this axis too.
            most = max(1, most // slices) if axis == cfg.slice_axis else most
            sizes[axis] = math.gcd(most, math.prod(dims))
            dims = _without(dims, sizes[axis])
    fsdp = dims if preset.rest == "fsdp" else (1,)
    sizes[preset.rest] = math.prod(dims)
    sizes[cfg.slice_axis] *= slices
    if cfg.slice_axis == "fsdp":
        fsdp = (fsdp[0] * slices, *fsdp[1:])
    chosen: dict[str, Any] = {**sizes, "fsdp": fsdp}
    return dataclasses.replace(cfg, preset=None, slices=slices, **chosen)


def _check_sizes(cfg: MeshConfig, preset: Preset) -> None:
    for axis in _AXES:
        size = getattr(cfg, axis)
        if size == getattr(_DEFAULT, axis) or axis in preset.at_most:
            continue
        if axis == preset.rest:
            raise ConfigError(
                f'mesh.preset="{cfg.preset}" gives {axis} the devices that are left, and '
                f"mesh.{axis}={size} sets them; leave out one of the two"
            )
        rows = [f'"{name}"' for name, row in TABLE.items() if axis in row.at_most]
        raise ConfigError(
            f'mesh.{axis}={size} is not for mesh.preset="{cfg.preset}" to use; leave it out, set '
            f"all sizes and no preset, or take one that has it: {', '.join(rows) or 'none'}"
        )
    has_stages = "pipeline" in (preset.rest, cfg.slice_axis, *preset.at_most)
    if not has_stages and (cfg.microbatches is not None or cfg.pipeline_repeats > 1):
        raise ConfigError(
            f"mesh.microbatches={cfg.microbatches} and mesh.pipeline_repeats="
            f'{cfg.pipeline_repeats} are of stages, and mesh.preset="{cfg.preset}" has none; leave '
            'them None and 1, or take "pp", "pp_fsdp" or "pp_fsdp_tp"'
        )


def torus(devices: Sequence[Any]) -> tuple[int, ...]:
    """Sizes of the axes along which these devices are linked, largest first, none of them 1.

    One axis for all where devices do not know their places, or do not fill a box.
    """
    places = [getattr(device, "coords", None) for device in devices]
    if not places or any(place is None for place in places):
        return (len(devices),)
    box = [len(set(axis)) for axis in zip(*places, strict=True)]
    cores = len({getattr(device, "core_on_chip", 0) for device in devices})
    box[-1] *= cores
    if math.prod(box) != len(devices):
        return (len(devices),)
    return tuple(sorted((size for size in box if size > 1), reverse=True)) or (1,)


def _without(dims: tuple[int, ...], size: int) -> tuple[int, ...]:
    """What is left of a torus when another axis takes `size` of it: of one of its axes if it can.

    Example:
      >>> _without((16, 16), 4), _without((4, 2), 4), _without((4, 2), 8)
      ((16, 4), (2,), (1,))
    """
    left = list(dims)
    fits = [i for i, dim in enumerate(left) if dim % size == 0]
    order = [*fits[-1:], *reversed(range(len(left)))]
    for i in order:
        part = math.gcd(size, left[i])
        left[i] //= part
        size //= part
    return tuple(dim for dim in left if dim > 1) or (1,)
