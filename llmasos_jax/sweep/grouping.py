"""Which points of a sweep train together: those for which one program is compiled.

They may differ in numbers that the program takes as arguments (`train.numbers.NUMBERS`) and in
seeds. All else, and whether decay, momentum and dropout are there at all, is compiled in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from llmasos_jax.config.build import fields_of
from llmasos_jax.config.schema import Config
from llmasos_jax.sweep.points import Point
from llmasos_jax.train.numbers import NUMBERS, is_zero

_SEEDS = ("train.seed", "data.seed")
# A zero of these is left out of the program, and with it what the optimizer would keep for it.
_ZERO_IS_COMPILED = (
    "optim.weight_decay",
    "optim.momentum",
    "train.dropout_rate",
    "objective.label_smoothing",
)


@dataclass(frozen=True)
class Group:
    """Points that train in one program.

    Attributes:
      name: of its folder: of the points, so that another choice of them is another group.
      points: of one compilation key, in the sweep's order.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def config(self) -> Config:
        """What they share, and the first one's numbers."""
        return self.points[0].config

    @property
    def is_shared(self) -> bool:
        """Whether there are several; one trains as a run of its own."""
        return len(self.points) > 1


def grouped(points: Iterable[Point], most: int) -> list[Group]:
    """Points by their compilation keys, in the order in which keys first occur.

    Args:
      points: of a sweep.
      most: points of a group.
    """
    by_key: dict[str, list[Point]] = {}
    for point in points:
        key = compilation_key(point.config) if can_share(point.config) else f"alone {point.name}"
        by_key.setdefault(key, []).append(point)
    groups = []
    for found in by_key.values():
        for start in range(0, len(found), most):
            chosen = tuple(found[start : start + most])
            names = json.dumps([point.name for point in chosen])
            groups.append(Group(hashlib.sha256(names.encode()).hexdigest()[:12], chosen))
    return groups


def can_share(config: Config) -> bool:
    """Whether a run can share its program: it starts from random weights, in one process."""
    return (
        config.finetune.base is None
        and config.train.start_from is None
        and config.hosts.count in (None, 1)
    )


def compilation_key(config: Config) -> str:
    """The same for runs that one program trains.

    Example:
      >>> import dataclasses
      >>> from llmasos_jax.config.build import load_config
      >>> tiny = load_config("tiny")
      >>> change = lambda **optim: dataclasses.replace(
      ...     tiny, optim=dataclasses.replace(tiny.optim, **optim)
      ... )
      >>> key = compilation_key(tiny)
      >>> key == compilation_key(change(learning_rate=0.5))
      True
      >>> key == compilation_key(change(name="sgd"))
      False
    """
    free = {*NUMBERS, *_SEEDS}
    if ":" in config.optim.name or ":" in config.optim.schedule:
        # What the user's own function does with a number is not known.
        free -= {path for path in NUMBERS if path.startswith("optim.")}
    if ":" in config.objective.name:
        free -= {*NUMBERS, "data.seed"}  # it is made from the whole config
    if config.tokenizer.kind != "bytes" and config.tokenizer.path is None:
        free -= {"data.seed"}  # the tokenizer is trained on the part that is not held out
    kept = {}
    for path, value in fields_of(config):
        if path in free:
            is_left_out = path in _ZERO_IS_COMPILED and is_zero(value)
            kept[path] = "none" if value is None or is_left_out else "any"
        else:
            kept[path] = value
    return json.dumps(kept, default=str)
