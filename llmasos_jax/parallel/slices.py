"""Slices of a pod: groups of devices with fast links inside and a slower network between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmasos_jax.errors import ConfigError


def count_slices(devices: Sequence[Any]) -> int:
    """Into how many slices TPU devices are grouped; 1 for others, which a config has to group."""
    return len(set(_numbers(devices))) or 1


def split_slices(devices: Sequence[Any], num_slices: int) -> list[list[Any]]:
    """The devices of each slice.

    TPUs know their slice. Others count as slices in their order, so that what several slices do
    can be tested on a CPU, and nodes of GPUs are named by their number.

    Raises:
      ConfigError: TPUs are of another number of slices, or slices would differ in size.

    Example:
      >>> split_slices(range(4), 2)
      [[0, 1], [2, 3]]
    """
    numbers = _numbers(devices)
    if numbers and len(set(numbers)) != num_slices:
        raise ConfigError(
            f"mesh.slices={num_slices}, and these TPUs are of {len(set(numbers))} slices; set "
            f"mesh.slices={len(set(numbers))}"
        )
    if numbers:
        pairs = list(zip(numbers, devices, strict=True))
        found = [[d for number, d in pairs if number == one] for one in sorted(set(numbers))]
    else:
        size = -(-len(devices) // num_slices)
        found = [list(devices[i * size : (i + 1) * size]) for i in range(num_slices)]
    sizes = [len(part) for part in found]
    if len(set(sizes)) > 1 or not all(sizes):
        raise ConfigError(
            f"mesh.slices={num_slices} slices have {sizes} devices; make the number of devices "
            f"({len(devices)}) a multiple of the slices, as many in each"
        )
    return found


def _numbers(devices: Sequence[Any]) -> list[int]:
    """The slice of each TPU; empty for other devices."""
    if any(getattr(device, "platform", None) != "tpu" for device in devices):
        return []
    return [getattr(device, "slice_index", 0) for device in devices]
