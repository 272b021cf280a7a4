"""A sweep's file, read and checked: its points, each a name and a whole config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.config.build import build, fields_of, nearest_path, read_config, to_dict
from llmasos_jax.config.files import UserFile
from llmasos_jax.config.flags import apply_overrides, with_values
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, LLMasOSError

SEED = "train.seed"
_UNFIT = re.compile(r"[^\w.=+,-]+")
_LONGEST_NAME = 200  # bytes: folders' names end at 255, and a seed comes behind


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: its folder's.
      setting: what its seeds share; the name itself where it has no seeds.
      overrides: what differs from the sweep's config, by paths.
      config: all of it.
      is_baseline: whether the others are compared with it.
    """

    name: str
    setting: str
    overrides: Mapping[str, Any]
    config: Config
    is_baseline: bool = False


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says.

    Attributes:
      path: of the file.
      question: the first paragraph of its docstring.
      base: the config that the points change.
      metric: which of a run's last values they are judged by.
      points: in the file's order.
    """

    path: Path
    question: str
    base: Config
    metric: str
    points: tuple[Point, ...]


def read_sweep(path: Path, overrides: Mapping[str, str] | None = None) -> Sweep:
    """Runs a sweep's file, and builds every point's config.

    The file has `sweep(add)`, and `CONFIG` (a name or path, the latter beside the file) or
    `get_config()`; it may have `METRIC`, by default "heldout_loss".

    Args:
      path: of the file.
      overrides: of the base config, as texts by path.

    Raises:
      ConfigError: it does not run, has no points or two of a name, or a point does not fit the
        config; the message has the point's name.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give a sweep's Python file")
    module = UserFile(path, nearest_path)
    base = _base(module, path)
    apply_overrides(base, dict(overrides or {}))
    add = Add(base, path)
    make = getattr(module, "sweep", None)
    if not callable(make):
        raise ConfigError(f"{path} has no function sweep(add); add it")
    module.call(make, add)
    if not add.points:
        raise ConfigError(f"{path}: sweep(add) added no point; call add({{...}}) once at least")
    _check_names(add.points, path)
    question = module.docstring.strip().partition("\n\n")[0]
    metric = getattr(module, "METRIC", "heldout_loss")
    if not isinstance(metric, str):
        raise ConfigError(f"{path}: METRIC={metric!r} is not a text; name what runs report")
    return Sweep(path, " ".join(question.split()), build(base), metric, tuple(add.points))


class Add:
    """What a sweep's file calls for each point."""

    def __init__(self, base: Any, path: Path) -> None:
        self._base, self._path = base, path
        self.points: list[Point] = []

    def __call__(
        self,
        overrides: Mapping[str, Any],
        *,
        name: str | None = None,
        seeds: int = 1,
        baseline: bool = False,
    ) -> None:
        """Adds one point, or one for each seed.

        Args:
          overrides: config paths and values; {} is the config as it stands.
          name: of the point; None makes one of the overrides.
          seeds: runs that differ in `train.seed` alone, counted up from the config's.
          baseline: whether the report compares the others with this one.
        """
        fit = _UNFIT.sub("-", name_of(overrides) if name is None else name)
        setting = fit.encode()[:_LONGEST_NAME].decode(errors="ignore")
        try:
            if not isinstance(seeds, int) or seeds < 1:
                raise ConfigError(f"seeds={seeds!r} must be a whole number of 1 at least")
            if not setting.strip("."):
                raise ConfigError(f"name={name!r} is no name of a folder; give letters or digits")
            first = build(with_values(self._base, overrides)).train.seed
            for seed in range(first, first + seeds):
                given = {**overrides, SEED: seed} if seeds > 1 else dict(overrides)
                point = f"{setting},seed={seed}" if seeds > 1 else setting
                config = build(with_values(self._base, given))
                self.points.append(Point(point, setting, given, config, baseline))
        except LLMasOSError as error:
            raise ConfigError(f'{self._path}: point "{setting}": {error}') from error


def name_of(overrides: Mapping[str, Any]) -> str:
    """A name of a point, from the last parts of its paths.

    Example:
      >>> name_of({"optim.learning_rate": 0.003, "model.mlp": "gelu"})
      'learning_rate=0.003,mlp=gelu'
      >>> name_of({})
      'base'
    """
    ends = Counter(path.rpartition(".")[2] for path in overrides)
    parts = [
        f"{end if ends[end := path.rpartition('.')[2]] == 1 else path}={_shown(value)}"
        for path, value in overrides.items()
    ]
    return ",".join(parts) or "base"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _base(module: Any, path: Path) -> Any:
    """The config that the file is over, for changing further."""
    make, named = getattr(module, "get_config", None), getattr(module, "CONFIG", None)
    if (make is None) == (named is None):
        raise ConfigError(
            f'{path} has to say what it sweeps over: CONFIG = "NAME" (or a path), or get_config()'
        )
    if make is not None:
        return read_config(module.call(make))
    beside = path.parent / str(named)
    is_beside = Path(str(beside).partition(":")[0]).is_file()
    return read_config(str(beside) if is_beside else str(named))


def _check_names(points: list[Point], path: Path) -> None:
    # Folders of some systems do not tell large letters from small ones.
    counts = Counter(point.name.lower() for point in points)
    twice = next((point.name for point in points if counts[point.name.lower()] > 1), None)
    if twice is not None:
        raise ConfigError(
            f'{path}: two points are named "{twice}"; give different overrides, or name="..."'
        )
    settings = {point.setting for point in points if point.is_baseline}
    if len(settings) > 1:
        raise ConfigError(
            f"{path}: {len(settings)} points are baselines ({', '.join(sorted(settings))}); "
            "give baseline=True to one"
        )


def described(sweep: Sweep) -> dict[str, Any]:
    """What `sweep.json` says of a sweep: all that its report reads."""
    return {
        "file": str(sweep.path),
        "question": sweep.question,
        "metric": sweep.metric,
        "base": to_dict(sweep.base),
        "points": [
            {
                "name": point.name,
                "setting": point.setting,
                "overrides": dict(point.overrides),
                "baseline": point.is_baseline,
            }
            for point in sweep.points
        ],
    }


def varied(points: tuple[Point, ...]) -> list[str]:
    """The paths in which the points' configs differ, but for the seed; in the schema's order."""
    fields = [dict(fields_of(point.config)) for point in points]
    return [path for path in fields[0] if path != SEED and len({repr(f[path]) for f in fields}) > 1]
