"""Operations of Pallas kernels, which the text of a program does not show, in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.count import visible_keys
from llmasos_jax.plan.hlo.program import Kernel

# Products of the size of scores: forward scores and the sum over values; backward for queries the
# scores again, their gradient, and the queries'; for keys and values one more.
_SPLASH = {"fwd": 2, "dq": 3, "dkv": 4}


def kernel_flops(
    kernels: Iterable[Kernel], cfg: ModelConfig, sequence_length: int
) -> tuple[float, tuple[str, ...]]:
    """Operations of all runs of the kernels, and the names of those that are not known.

    Attention is charged with the keys that causality and windows leave, the mean over the layers:
    of a block that the mask cuts, the kernel computes the rest too, so this is a lower bound. A
    ragged product takes 2 M K N.

    Args:
      kernels: of a program of one device.
      cfg: the model.
      sequence_length: tokens of a row.
    """
    layers = range(cfg.num_layers)
    keys = sum(visible_keys(cfg, n, sequence_length) for n in layers) / max(1, cfg.num_layers)
    total, opaque = 0.0, []
    for kernel in kernels:
        flops = _splash(kernel, keys / sequence_length)
        if flops is None:
            flops = _ragged(kernel)
        if flops is None:
            opaque.append(kernel.name)
        else:
            total += kernel.runs * flops
    return total, tuple(dict.fromkeys(opaque))


def _splash(kernel: Kernel, seen: float) -> float | None:
    if "splash" not in kernel.name:
        return None
    products = next((n for part, n in _SPLASH.items() if f"_{part}_" in f"{kernel.name}_"), None)
    heads = [shape for shape in kernel.operands if len(shape) >= 3 and shape[-1] >= 32]
    if products is None or len(heads) < 3:
        return None
    # Queries [(B,) N, T, H], keys [(B,) K, S, H], values [(B,) K, S, H'].
    q, k, v = heads[:3]
    width = (q[-1] + v[-1]) / 2
    return 2.0 * products * math.prod(q[:-1]) * k[-2] * seen * width


def _ragged(kernel: Kernel) -> float | None:
    """Rows [M, K] times the matrix [E, K, N] of their group, or of rows [K, M] and rows [K, N]."""
    if "ragged" not in kernel.name and "gmm" not in kernel.name:
        return None
    wide = [shape for shape in kernel.operands if len(shape) >= 2]
    if len(wide) < 2:
        return None
    left, right = sorted(wide, key=lambda shape: (len(shape), -math.prod(shape)))[0], wide[-1]
    stacks = [shape for shape in wide if len(shape) == 3]
    right = stacks[-1] if stacks else right
    return 2.0 * math.prod(left) * right[-1]
