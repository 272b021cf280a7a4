"""The mesh of devices: an axis for each way in which a run is split.

::

    data      replicas that split the batch
    pipeline  stages of layers; they split the batch outside of the layers
    fsdp      ways in which weights are split; they split the batch too
    expert    ways in which experts are split; they split the batch too
    context   ways in which the tokens of a sequence are split
    tensor    ways in which heads, MLP width and vocabulary are split

An fsdp of (16, 16) makes two axes, `fsdp_0` and `fsdp_1`, laid along two axes of a TPU torus;
weights are gathered along one after the other. `pipeline`, `expert` and `context` are there only
where they have more than one device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from llmasos_jax.config.devices import MeshConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.presets import mesh_config
from llmasos_jax.parallel.slices import split_slices


def fsdp_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which weights are split and gathered, slowest first."""
    return tuple(name for name in mesh.axis_names if str(name).startswith("fsdp"))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which the rows of a batch are split, slowest first."""
    fsdp = fsdp_axes(mesh)
    return ("data", *present(mesh, "pipeline"), *fsdp, *present(mesh, "expert"))


def present(mesh: Mesh, *names: str) -> tuple[str, ...]:
    """Those of the axes that this mesh has."""
    return tuple(name for name in names if name in mesh.axis_names)


def ways(mesh: Mesh, *names: str) -> int:
    """Into how many parts these axes cut; one that the mesh does not have cuts into one."""
    return math.prod(mesh.shape[name] for name in present(mesh, *names))


def describe(mesh: Mesh) -> str:
    """The devices and how they are laid out, as a person says it.

    Example:
      >>> from llmasos_jax.config.devices import MeshConfig
      >>> describe(make_mesh(MeshConfig(data=1), jax.devices()[:1])).startswith("1 device (")
      True
    """
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    count, kind = mesh.size, mesh.devices.flat[0].device_kind
    return f"{count} device{'s' if count > 1 else ''} ({kind}){': ' + axes if axes else ''}"


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays all devices out as `cfg` says.

    Args:
      cfg: a preset, or sizes of the axes; `data=None` takes what the others leave. With several
        slices the slowest part of `slice_axis` goes from one to the next, and every other axis
        stays inside of them.
      devices: of JAX; defaults to all that it sees. May be of a topology that is not attached.

    Raises:
      ConfigError: the sizes do not use each device once, or do not fit the slices.

    Example:
      >>> make_mesh(MeshConfig(), jax.devices()[:1]).shape["data"]
      1
    """
    devices = list(jax.devices() if devices is None else devices)
    cfg = mesh_config(cfg, devices)
    axes = _axes(cfg, len(devices))
    types = (AxisType.Auto,) * len(axes)
    parts = split_slices(devices, cfg.slices)
    joined = next(i for i, name in enumerate(axes) if name.startswith(cfg.slice_axis))
    shape = list(axes.values())
    if shape[joined] % cfg.slices:
        raise ConfigError(
            f"mesh.slices={cfg.slices} are joined by mesh.{cfg.slice_axis}={shape[joined]}, which "
            f"is not divisible by them; make it a multiple of {cfg.slices}, or join them by "
            "another mesh.slice_axis"
        )
    shape[joined] //= cfg.slices
    # Each slice by itself, along the axes of its own torus.
    laid = [
        jax.make_mesh(tuple(shape), tuple(axes), axis_types=types, devices=part).devices
        for part in parts
    ]
    return Mesh(np.concatenate(laid, axis=joined), tuple(axes), axis_types=types)


def _axes(cfg: MeshConfig, num_devices: int) -> dict[str, int]:
    """Names and sizes of the mesh axes, slowest first."""
    inner = {
        "pipeline": (cfg.pipeline,),
        "fsdp": cfg.fsdp,
        "expert": (cfg.expert,),
        "context": (cfg.context,),
    }
    rest = math.prod(math.prod(sizes) for sizes in inner.values()) * cfg.tensor
    data = cfg.data if cfg.data is not None else max(1, num_devices // rest)
    if cfg.data is None and num_devices % rest:
        raise ConfigError(
            f"mesh {_described(cfg, None)} is {rest} devices, there are {num_devices}; make the "
            f"product {num_devices}, or a divisor of it: mesh.data=None takes what it leaves"
        )
    if data * rest != num_devices:
        raise ConfigError(
            f"mesh {_described(cfg, data)} is {data * rest} devices, there are {num_devices}; "
            f"make the product {num_devices} (mesh.data=None takes what the others leave)"
        )
    axes: dict[str, int] = {"data": data}
    for name, sizes in inner.items():
        if len(sizes) > 1:
            axes |= {f"{name}_{i}": size for i, size in enumerate(sizes)}
        elif name == "fsdp" or sizes[0] > 1 or (name == cfg.slice_axis and cfg.slices > 1):
            axes[name] = sizes[0]
    return axes | {"tensor": cfg.tensor}


def _described(cfg: MeshConfig, data: int | None) -> str:
    others = {name: getattr(cfg, name) for name in ("pipeline", "expert", "context")}
    parts = [f"data={data}"] if data is not None else []
    parts += [f"fsdp={'x'.join(map(str, cfg.fsdp))}"]
    parts += [f"{name}={size}" for name, size in others.items() if size > 1]
    return " x ".join([*parts, f"tensor={cfg.tensor}"])


def single_device_mesh(device: Any = None) -> Mesh:
    """A mesh of one JAX device (the first, if None), on which every rule is a no-op."""
    return make_mesh(MeshConfig(data=1), [device if device is not None else jax.local_devices()[0]])


def platform(mesh: Mesh) -> str:
    """`"cpu"`, `"tpu"` or `"gpu"`: of the mesh's devices, not of this host."""
    return mesh.devices.flat[0].platform
