"""Sets of points: what a sweep's file gives to `add`, each a dict of config paths and values."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmasos_jax.errors import ConfigError

Point = dict[str, Any]
Draw = Callable[[random.Random], Any]


def grid(fields: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of the values, the last field fastest.

    Raises:
      ConfigError: a field has no values, or one text in the place of a list of them.

    Example:
      >>> grid({"optim.beta1": [0.9, 0.95], "train.seed": [0, 1]})[1]
      {'optim.beta1': 0.9, 'train.seed': 1}
    """
    values = [_listed(path, found) for path, found in fields.items()]
    return [dict(zip(fields, chosen, strict=True)) for chosen in itertools.product(*values)]


def zipped(fields: Mapping[str, Sequence[Any]]) -> list[Point]:
    """The first values of all fields, then the second ones.

    Raises:
      ConfigError: the fields have different numbers of values.

    Example:
      >>> zipped({"model.num_layers": [2, 4], "model.embedding_dim": [64, 128]})[1]
      {'model.num_layers': 4, 'model.embedding_dim': 128}
    """
    values = [_listed(path, found) for path, found in fields.items()]
    if len({len(found) for found in values}) > 1:
        counts = ", ".join(f"{path} {len(fields[path])}" for path in fields)
        raise ConfigError(f"zipped() got different numbers of values ({counts}); give as many each")
    return [dict(zip(fields, chosen, strict=True)) for chosen in zip(*values, strict=True)]


def drawn(count: int, fields: Mapping[str, Draw | Sequence[Any]], *, seed: int = 0) -> list[Point]:
    """Random points (Bergstra and Bengio, 2012, JMLR 13): the first n are the same for any count.

    Args:
      count: how many.
      fields: for each path `uniform(...)`, `log_uniform(...)`, another function of a
        `random.Random`, or values of which one is taken.
      seed: of the draws.

    Example:
      >>> fields = {"optim.learning_rate": log_uniform(1e-4, 1e-2), "model.mlp": ["swiglu"]}
      >>> points = drawn(3, fields)
      >>> len(points), all(1e-4 <= point["optim.learning_rate"] <= 1e-2 for point in points)
      (3, True)
      >>> points[:2] == drawn(2, fields)
      True
    """
    if count < 1:
        raise ConfigError(f"drawn({count}) makes no point; ask for 1 at least")
    rng = random.Random(seed)
    draw: dict[str, Draw] = {}
    for path, found in fields.items():
        if isinstance(found, Callable):
            draw[path] = found
        else:
            values = _listed(path, found)
            draw[path] = lambda rng, values=values: rng.choice(values)
    return [{path: one(rng) for path, one in draw.items()} for _ in range(count)]


def uniform(low: float, high: float) -> Draw:
    """Numbers evenly between two bounds, for `drawn`."""
    _check_bounds("uniform", low, high)
    return lambda rng: rng.uniform(low, high)


def log_uniform(low: float, high: float) -> Draw:
    """Numbers whose logarithm is evenly between those of two positive bounds, for `drawn`.

    Three digits are kept: names of points stay readable.
    """
    _check_bounds("log_uniform", low, high)
    if low <= 0:
        raise ConfigError(f"log_uniform({low}, {high}): the lower bound has to be above 0")
    bounds = math.log(low), math.log(high)
    return lambda rng: min(max(float(f"{math.exp(rng.uniform(*bounds)):.3g}"), low), high)


def _check_bounds(name: str, low: float, high: float) -> None:
    if not low < high:
        raise ConfigError(f"{name}({low}, {high}): the first bound has to be below the second")


def _listed(path: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence | range):
        raise ConfigError(f'"{path}" has {values!r}; give a list of its values')
    if not values:
        raise ConfigError(f'"{path}" has no values; give one at least')
    return list(values)
