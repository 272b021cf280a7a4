"""ALiBi: a penalty on distance in place of positions (Press et al., 2021, arXiv 2108.12409)."""

from __future__ import annotations

import math

import numpy as np


def slopes(num_heads: int) -> np.ndarray:
    """The slope of each head, float32 [N]: 2^(-8/N), 2^(-16/N), ... for N a power of two.

    For other N, as in the paper's released code: those of the nearest smaller power of two, then
    every second one of the next.

    Example:
      >>> slopes(4).tolist()
      [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(num_heads))
    first = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    second = [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return np.array((first + second)[:num_heads], np.float32)
