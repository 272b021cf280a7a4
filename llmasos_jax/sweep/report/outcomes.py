"""What became of each point of a sweep, read from the sweep's folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmasos_jax.errors import ConfigError, DataError
from llmasos_jax.sweep.places import Places, read_json
from llmasos_jax.sweep.points import SEED
from llmasos_jax.train.hooks import metrics_path, read_metrics
from llmasos_jax.train.result import read_result

Status = Literal["done", "diverged", "failed", "waiting"]
# Ends of names of values of which more is better; less is of all others (losses, perplexities).
_HIGHER_IS_BETTER = ("accuracy", "f1", "pearson", "margin", "chosen_reward", "mfu", "tokens_per_s")
_CURVES = ("loss", "heldout_loss")

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Outcome:
    """One point.

    Attributes:
      name: of the point.
      setting: what its seeds share.
      seed: `train.seed`.
      overrides: what it sets that the base does not, by paths.
      status: "waiting" while there is neither a result nor a reason why there is none.
      step: the last one that is known of; 0 if none was done.
      values: the last ones of the run, by the names of `train/metrics.py`.
      curves: (step, value) of the metric and of the losses.
      tokens: that the model has read.
      seconds: that the run took; None while it has no result.
      why: the reason, of one that diverged or failed.
      log: the file with its output, relative to the sweep's folder; of one that failed.
    """

    name: str
    setting: str
    seed: int
    overrides: Mapping[str, Any]
    status: Status
    step: int
    values: Mapping[str, float]
    curves: Mapping[str, Curve]
    tokens: int
    seconds: float | None
    why: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class Setting:
    """The points that differ in the seed alone.

    Attributes:
      name: theirs, without the seed.
      overrides: without the seed.
      is_baseline: whether the others are compared with it.
      outcomes: one for each seed, in the sweep's order.
    """

    name: str
    overrides: Mapping[str, Any]
    is_baseline: bool
    outcomes: tuple[Outcome, ...]

    def of(self, status: Status) -> tuple[Outcome, ...]:
        """Those that ended so."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == status)

    def values(self, metric: str) -> dict[int, float]:
        """The metric by seed, of those that are done."""
        found = {outcome.seed: outcome.values.get(metric) for outcome in self.of("done")}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Outcomes:
    """All of a sweep.

    Attributes:
      file: the sweep's.
      question: what it asks.
      metric: which of a run's last values it is judged by.
      base: fields of the config that the points change, by paths.
      settings: in the sweep's order.
      group_seconds: of the programs that trained points together; None if none has ended.
    """

    file: str
    question: str
    metric: str
    base: Mapping[str, Any]
    settings: tuple[Setting, ...]
    group_seconds: float | None

    @property
    def points(self) -> tuple[Outcome, ...]:
        """All points."""
        return tuple(outcome for setting in self.settings for outcome in setting.outcomes)

    @property
    def baseline(self) -> Setting | None:
        """What the others are compared with."""
        return next((setting for setting in self.settings if setting.is_baseline), None)

    def varied(self) -> list[str]:
        """The paths in which settings differ, in the order in which points name them."""
        paths = dict.fromkeys(path for setting in self.settings for path in setting.overrides)
        return [p for p in paths if len({repr(self.value(s, p)) for s in self.settings}) > 1]

    def value(self, setting: Setting, path: str) -> Any:
        """What a setting has at a path: its own value, else the base's."""
        return setting.overrides.get(path, self.base.get(path))


def is_lower_better(metric: str) -> bool:
    """Which way a metric is better.

    Example:
      >>> [is_lower_better(name) for name in ("heldout_loss", "heldout_macro_f1", "accuracy")]
      [True, False, False]
    """
    return not metric.endswith(_HIGHER_IS_BETTER)


def read_outcomes(places: Places) -> Outcomes:
    """Reads a sweep's folder; its runs may be under way.

    Raises:
      ConfigError: it is no sweep's folder, or a file in it is damaged.
    """
    asked = _read(places, places.sweep)
    if asked is None:
        raise ConfigError(
            f"{places.root} is no sweep's folder: it has no {places.sweep.name}; "
            "give what --workdir was"
        )
    try:
        metric = asked.get("metric", "heldout_loss")
        base = dict(_flat(asked["base"]))
        points = [_outcome(places, point, base, metric) for point in asked["points"]]
        settings: dict[str, list[Outcome]] = {}
        for outcome in points:
            settings.setdefault(outcome.setting, []).append(outcome)
        baselines = {point["setting"] for point in asked["points"] if point.get("baseline")}
        file, question = asked.get("file", ""), asked.get("question", "")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{places.sweep}: not what a sweep writes ({type(error).__name__}: {error}); "
            "run the sweep again over this folder"
        ) from error
    if not points:
        raise ConfigError(f"{places.sweep} names no points; run the sweep again over this folder")
    return Outcomes(
        file,
        question,
        metric,
        base,
        tuple(
            Setting(name, _without_seed(found[0].overrides), name in baselines, tuple(found))
            for name, found in settings.items()
        ),
        _group_seconds(places),
    )


def _outcome(
    places: Places, point: Mapping[str, Any], base: Mapping[str, Any], metric: str
) -> Outcome:
    name, overrides = point["name"], point["overrides"]
    folder = places.point(name)
    try:
        lines = read_metrics(metrics_path(folder))
    except DataError as error:
        raise ConfigError(f'point "{name}": {error}') from error
    values = _last(lines)
    step = max((line["step"] for line in lines), default=0)
    steps = overrides.get("train.steps", base.get("train.steps"))
    result = read_result(folder)
    status, why, log, seconds = "waiting", None, None, None
    if (said := _read(places, places.diverged(name))) is not None:
        status, why, step = "diverged", said.get("why", "no reason given"), said.get("step", step)
    elif result is not None and (steps is None or result.step >= int(steps)):
        status, step, seconds = "done", result.step, result.seconds
        values |= {k: v for k, v in dataclasses.asdict(result).items() if _is_number(v)}
    elif (said := _read(places, places.failed(name))) is not None:
        status, why, log = "failed", said.get("why", "no reason given"), said.get("log")
    return Outcome(
        name,
        point["setting"],
        int(overrides.get(SEED, base.get(SEED, 0))),
        overrides,
        status,
        step,
        values,
        {curve: _curve(lines, curve) for curve in dict.fromkeys((*_CURVES, metric))},
        int(values.get("tokens", 0)),
        seconds,
        why,
        log,
    )


def _last(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Of each value the last one that is a number."""
    return {k: v for line in lines for k, v in line.items() if k != "step" and _is_number(v)}


def _curve(lines: list[dict[str, Any]], name: str) -> Curve:
    return tuple((line["step"], line[name]) for line in lines if _is_number(line.get(name)))


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and math.isfinite(value)


def _flat(values: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        found += _flat(value, f"{path}{name}.") if nested else [(path + name, value)]
    return found


def _without_seed(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in overrides.items() if path != SEED}


def _group_seconds(places: Places) -> float | None:
    found = [_read(places, path) for path in sorted(places.root.glob("groups/*/time.json"))]
    seconds = [values["total_s"] for values in found if values and "total_s" in values]
    return sum(seconds) if seconds else None


def _read(places: Places, path: Any) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); run the sweep again") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{path} is no JSON object; run the sweep again over this folder")
    return found
