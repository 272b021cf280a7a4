"""The integral of a gradient along a path, cut finer where it does not add up yet."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.errors import GenerationError

NODES = 8  # of the rule of Gauss and Legendre on each piece
Arrays = dict[str, np.ndarray]
Run = Callable[[np.ndarray, np.ndarray], tuple[Any, Arrays, Any]]


@dataclass(frozen=True)
class Path:
    """An integral over [0, 1].

    Attributes:
      integral: of the gradient, by stack, float32 [T', D].
      first, last: the score at both ends.
      evaluations: points at which a gradient was taken.
    """

    integral: Arrays
    first: float
    last: float
    evaluations: int


@dataclass(frozen=True)
class _Piece:
    start: float
    end: float
    values: tuple[float, float]  # the score at both ends
    integral: Arrays
    slope_integral: float

    @property
    def error(self) -> float:
        """What the rule misses here: the slope's integral is the difference of the scores."""
        return abs(self.slope_integral - (self.values[1] - self.values[0]))


def integrate(run: Run, tolerance: float, max_evaluations: int, *, jumps: bool = False) -> Path:
    """Integrates the gradient, until the pieces' errors together are below the tolerance.

    A model turns within small shares of the way, and rules of even steps take thousands of them.
    Here the piece that is worst is cut in two, until steps are small where they need to be.

    Args:
      run: given points float32 [S] and their weights float32 [S], gives scores [S], the weighted
        sum of gradients by stack, and the weighted sum of slopes along the path.
      tolerance: as a share of the difference of the scores at both ends.
      max_evaluations: points at most.
      jumps: whether the score may jump along the path, as that of a model with routers does.

    Raises:
      GenerationError: it is not below the tolerance after so many points, or a gradient is no
        finite number.
    """
    if not 0 < tolerance < 1:
        raise GenerationError(f"tolerance={tolerance}; give a share, above 0 and below 1")
    x, w = np.polynomial.legendre.leggauss(NODES)
    used = 0

    def piece(start: float, end: float) -> _Piece:
        nonlocal used
        half = (end - start) / 2
        nodes = np.append(start + half * (x + 1), [start, end]).astype(np.float32)
        weights = np.append(half * w, [0.0, 0.0]).astype(np.float32)
        values, integral, slope = run(nodes, weights)
        used += len(nodes)
        if not np.isfinite([float(slope), *map(float, values)]).all():
            raise GenerationError(
                f"between {start:.2g} and {end:.2g} of the way from the baseline to the text, "
                "gradients are beyond float32; give another baseline (zeros are none for a deep "
                "model)"
            )
        ends = (float(values[-2]), float(values[-1]))
        return _Piece(start, end, ends, integral, float(slope))

    whole = piece(0.0, 1.0)
    first, last = whole.values
    allowed = tolerance * abs(last - first)
    pieces = [(-whole.error, 0.0, whole)]
    while (error := -sum(negative for negative, _, _ in pieces)) > allowed:
        if used + 2 * (NODES + 2) > max_evaluations:
            why = (
                "give another baseline (of a deep model none near zeros), or raise tolerance or "
                "max_evaluations"
            )
            if jumps:
                why = (
                    "its routers choose other experts along the path, where the score jumps and "
                    "has no gradient; give a baseline nearer to the text, or raise tolerance"
                )
            raise GenerationError(
                f"the attributions miss the difference of the scores, {last - first:.4g}, by up to "
                f"{error:.2g} after {used} gradients; {why}"
            )
        _, _, worst = heapq.heappop(pieces)
        middle = (worst.start + worst.end) / 2
        for part in (piece(worst.start, middle), piece(middle, worst.end)):
            heapq.heappush(pieces, (-part.error, part.start, part))
    total = {
        name: np.sum([np.asarray(part.integral[name]) for _, _, part in pieces], axis=0)
        for name in whole.integral
    }
    return Path(total, first, last, used)
