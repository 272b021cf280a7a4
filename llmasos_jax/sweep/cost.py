"""What a sweep will cost, before anything runs: `llmasos sweep FILE --dry-run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmasos_jax.config.schema import Config
from llmasos_jax.models.count import count_parameters, flops_per_row
from llmasos_jax.sweep.grouping import Group

# Of the products' peak that a small model's step reaches on a CPU; what is measured lies around it.
_SHARE_OF_PEAK = 0.3


@dataclass(frozen=True)
class PointCost:
    """What one point costs.

    Attributes:
      name: of the point.
      program: number of the program that trains it, from 1.
      parameters: of its model; None where the base has to be opened for it.
      tokens: that it reads.
      flops: floating-point operations of its steps; None like `parameters`.
    """

    name: str
    program: int
    parameters: int | None
    tokens: int
    flops: float | None


@dataclass(frozen=True)
class SweepCost:
    """What a sweep costs.

    Attributes:
      points: in the order of their programs.
      programs: that are compiled.
      flops: of all points whose model is known.
      seconds: on a device of `peak_flops`; None where that is not known.
      peak_note: what device that is.
    """

    points: tuple[PointCost, ...]
    programs: int
    flops: float
    seconds: float | None
    peak_note: str

    def __str__(self) -> str:
        width = max(len("point"), *(len(point.name) for point in self.points))
        rows = [f"{'point':<{width}}  program  {'parameters':>13}  {'tokens':>13}  {'FLOPs':>8}"]
        for p in self.points:
            size = "of its base" if p.parameters is None else f"{p.parameters:,}"
            flops = "" if p.flops is None else f"{p.flops:.1e}"
            numbers = f"{p.program:>7}  {size:>13}  {p.tokens:>13,}  {flops:>8}"
            rows.append(f"{p.name:<{width}}  {numbers}")
        programs = f"{self.programs} program{'s' if self.programs > 1 else ''}"
        count = f"{len(self.points)} points in {programs}"
        total = f"{count}, {self.flops:.2e} floating-point operations"
        if self.seconds is not None:
            total += (
                f"; about {_spoken(self.seconds)} at {_SHARE_OF_PEAK:.0%} of this machine's peak "
                f"({self.peak_note})"
            )
        return "\n".join([*rows, total])

    def to_dict(self) -> dict[str, Any]:
        """All values under their names, for JSON."""
        return dataclasses.asdict(self)


def cost_of(groups: Sequence[Group], *, peak: tuple[float, str] | None = None) -> SweepCost:
    """What the groups of a sweep cost.

    Args:
      groups: what would run.
      peak: operations a second of all devices here, and what that figure is; None for none.
    """
    points = [
        _point_cost(point.name, number, point.config)
        for number, group in enumerate(groups, 1)
        for point in group.points
    ]
    flops = sum(point.flops or 0.0 for point in points)
    seconds = None if peak is None else flops / (peak[0] * _SHARE_OF_PEAK)
    return SweepCost(tuple(points), len(groups), flops, seconds, "" if peak is None else peak[1])


def _point_cost(name: str, number: int, cfg: Config) -> PointCost:
    length, rows = cfg.data.sequence_length, cfg.train.steps * cfg.train.batch_size
    if cfg.finetune.base is not None:
        return PointCost(name, number, None, rows * length, None)
    flops = flops_per_row(cfg.model, length, length, length if cfg.model.encoder.num_layers else 0)
    return PointCost(name, number, count_parameters(cfg.model), rows * length, rows * flops)


def _spoken(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
