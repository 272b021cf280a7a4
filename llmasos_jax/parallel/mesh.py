"""The mesh of devices: `data`, `fsdp` (one axis or several) and `tensor`.

::

    data    replicas that split the batch
    fsdp    ways in which weights are split; they split the batch too
    tensor  ways in which heads, MLP width and vocabulary are split

An fsdp of (16, 16) makes two axes, `fsdp_0` and `fsdp_1`, laid along two axes of a TPU torus;
weights are gathered along one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.errors import ConfigError


def fsdp_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which weights are split and gathered, slowest first."""
    return tuple(name for name in mesh.axis_names if str(name).startswith("fsdp"))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which the batch is split, slowest first."""
    return ("data", *fsdp_axes(mesh))


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays all devices out as `cfg` says.

    Args:
      cfg: sizes of the axes; `data=None` takes what the others leave.
      devices: of JAX; defaults to all that it sees. May be of a topology that is not attached.

    Raises:
      ConfigError: the sizes do not use each device once.

    Example:
      >>> make_mesh(MeshConfig(), jax.devices()[:1]).shape["data"]
      1
    """
    devices = list(jax.devices() if devices is None else devices)
    rest = math.prod(cfg.fsdp) * cfg.tensor
    data = cfg.data if cfg.data is not None else max(1, len(devices) // rest)
    if data * rest != len(devices):
        raise ConfigError(
            f"mesh data={data} x fsdp={'x'.join(map(str, cfg.fsdp))} x tensor={cfg.tensor} is "
            f"{data * rest} devices, there are {len(devices)}; make the product {len(devices)} "
            "(mesh.data=None takes what the others leave)"
        )
    names = (
        "data",
        *(["fsdp"] if len(cfg.fsdp) == 1 else [f"fsdp_{i}" for i in range(len(cfg.fsdp))]),
        "tensor",
    )
    types = (AxisType.Auto,) * len(names)
    return jax.make_mesh((data, *cfg.fsdp, cfg.tensor), names, axis_types=types, devices=devices)


def single_device_mesh(device: Any = None) -> Mesh:
    """A mesh of one JAX device (the first, if None), on which every rule is a no-op."""
    return make_mesh(MeshConfig(data=1), [device if device is not None else jax.local_devices()[0]])


def platform(mesh: Mesh) -> str:
    """`"cpu"`, `"tpu"` or `"gpu"`: of the mesh's devices, not of this host."""
    return mesh.devices.flat[0].platform
