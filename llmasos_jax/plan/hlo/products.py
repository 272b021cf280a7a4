"""Operations of a matrix product, from its shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from llmasos_jax.plan.hlo.text import Line


def product_flops(line: Line, lines: Mapping[str, Line]) -> int:
    """Additions and multiplications of a `dot` or a `convolution`, which is what a TPU makes of it.

    Padding is not multiplied: of a convolution only those pairs of a place in the window and a
    place in the result count that meet a number.

    Args:
      line: the instruction.
      lines: of its computation, by name.
    """
    left, right = (lines[name].arrays[0].shape for name in line.operands[:2])
    if line.op == "dot":
        axes = _numbers(line.attributes, r"lhs_contracting_dims=\{([\d,]*)\}")
        return 2 * math.prod(line.arrays[0].shape) * math.prod(left[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    if labels is None:
        return 0
    batch, features = left[labels[1].index("b")], right[labels[2].index("i")]
    groups = re.search(r"batch_group_count=(\d+)", line.attributes)
    total = 2 * (batch // (int(groups[1]) if groups else 1)) * features
    total *= right[labels[2].index("o")]
    window = _window(line.attributes)
    for index, axis in enumerate(sorted(filter(str.isdigit, labels[3]))):
        taken, given = left[labels[1].index(axis)], line.arrays[0].shape[labels[3].index(axis)]
        total *= _pairs(taken, given, {name: sizes[index] for name, sizes in window.items()})
    return total


def _window(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    pairs = (part.split("=") for part in found[1].split()) if found else ()
    return {name: sizes.split("x") for name, sizes in pairs}


def _pairs(taken: int, given: int, window: Mapping[str, str]) -> int:
    """Pairs of a place in the window and in the result that meet a number of the left side."""
    size, stride = int(window.get("size", "1")), int(window.get("stride", "1"))
    low = int(window.get("pad", "0_0").split("_")[0])
    spread, step = int(window.get("lhs_dilate", "1")), int(window.get("rhs_dilate", "1"))
    length = (taken - 1) * spread + 1
    starts = np.arange(size, dtype=np.int64) * step - low
    if spread == 1:
        first = np.maximum(0, -(starts // stride))
        last = np.minimum(given - 1, (length - 1 - starts) // stride)
        return int(np.maximum(0, last - first + 1).sum())
    total, places = 0, np.arange(given, dtype=np.int64) * stride
    for start in starts:
        at = places + start
        total += int(((at >= 0) & (at < length) & (at % spread == 0)).sum())
    return total


def _numbers(text: str, pattern: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    return tuple(int(n) for n in found[1].split(",") if n) if found else ()
