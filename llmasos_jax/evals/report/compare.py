"""Compares results of one task: figures, paired tests, examples on which models differ."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.intervals import Difference, Interval, bootstrap, permutation
from llmasos_jax.evals.tasks.checked import check_same_question
from llmasos_jax.evals.tasks.measures import LOWER_IS_BETTER, Measured, measure
from llmasos_jax.evals.tasks.result import TaskResult, read_result

SIGNIFICANT = 0.05
_DRAWS_A_TEST = 100


@dataclass(frozen=True)
class Pair:
    """A metric of the first system and of another one.

    Attributes:
      task, metric: what it is.
      system: the place of the other one, from 1.
      difference: it less the first, with the paired permutation test.
      is_better: whether it is better; None where the test says no.
    """

    task: str
    metric: str
    system: int
    difference: Difference
    is_better: bool | None


@dataclass(frozen=True)
class Comparison:
    """Systems on the same tasks.

    Attributes:
      systems: names, the first is what others are compared with.
      results: of each task by name, a result of each system.
      intervals: by (task, metric), of each system.
      pairs: the tests.
    """

    systems: tuple[str, ...]
    results: dict[str, list[TaskResult]]
    intervals: dict[tuple[str, str], list[Interval]]
    pairs: tuple[Pair, ...]

    @property
    def threshold(self) -> float:
        """Below which p counts: 0.05 over the number of tests (Bonferroni)."""
        return SIGNIFICANT / max(len(self.pairs), 1)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "systems": list(self.systems),
            "threshold": self.threshold,
            "figures": [
                {"task": task, "metric": metric, "systems": [asdict(i) for i in found]}
                for (task, metric), found in self.intervals.items()
            ],
            "pairs": [asdict(pair) for pair in self.pairs],
        }

    def __str__(self) -> str:
        lines = [f"{chr(65 + i)}  {name}" for i, name in enumerate(self.systems)]
        for (task, metric), found in self.intervals.items():
            lines.append(f"{task}, {metric}")
            tests = {p.system: p for p in self.pairs if (p.task, p.metric) == (task, metric)}
            for i, interval in enumerate(found):
                said = f"   {tests[i].difference}  {verdict(tests[i])}" if i in tests else ""
                lines.append(f"  {chr(65 + i)}  {interval}{said}")
        lines.append(f"p counts below {self.threshold:.2g}: 0.05 over {len(self.pairs)} tests")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def verdict(pair: Pair) -> str:
    """What a test says, in a word."""
    return {None: "no difference shown", True: "better", False: "worse"}[pair.is_better]


def compare(paths: Sequence[str | Path], *, samples: int = 1000, seed: int = 0) -> Comparison:
    """Compares results that `llmasos eval` wrote.

    Args:
      paths: two or more of its .json files, of one or several tasks; the first model that occurs is
        what the others are compared with.
      samples: of the bootstrap and of the permutation test; with many tests that takes more.
      seed: of their draws.

    Raises:
      EvaluationError: fewer than two models, or a task that is not the same for all.
    """
    by_task: dict[str, dict[str, TaskResult]] = {}
    systems: dict[str, str] = {}
    for path in paths:
        result = read_result(Path(path))
        key = f"{result.model_hash}/{result.settings.get('dtype')}/{result.seed}"
        systems.setdefault(key, result.model)
        if key in by_task.setdefault(result.task, {}):
            raise EvaluationError(
                f"{path}: {result.model} has another result of {result.task} with the same "
                "weights, type and seed; give one of them"
            )
        by_task[result.task][key] = result
    if len(systems) < 2:
        raise EvaluationError(f"{len(systems)} model in {len(paths)} results; give at least two")
    results = {}
    for task, found in by_task.items():
        if set(found) != set(systems):
            missing = next(name for key, name in systems.items() if key not in found)
            raise EvaluationError(f"task {task} has no result of {missing}; run it for every model")
        results[task] = [found[key] for key in systems]
        _check_same(task, results[task])
    return _compared(tuple(_names(systems)), results, samples, seed)


def _compared(
    systems: tuple[str, ...], results: dict[str, list[TaskResult]], samples: int, seed: int
) -> Comparison:
    intervals, tests = {}, []
    # No p is below 1 / draws, and the one that counts falls with the number of tests.
    num_tests = (len(systems) - 1) * sum(len(found[0].metrics) for found in results.values())
    draws = max(samples, _DRAWS_A_TEST * num_tests)
    for task, found in results.items():
        for metric in found[0].metrics:
            measured = measure(metric, *(result.records for result in found))
            intervals[task, metric] = [
                bootstrap(m.rows, m.finish, samples=samples, seed=seed) for m in measured
            ]
            for i in range(1, len(found)):
                tests.append((task, metric, i, _tested(measured[0], measured[i], draws, seed)))
    threshold = SIGNIFICANT / max(len(tests), 1)
    pairs = []
    for task, metric, i, difference in tests:
        is_better = None
        if difference.p < threshold and difference.value:
            is_better = (difference.value > 0) != (metric in LOWER_IS_BETTER)
        pairs.append(Pair(task, metric, i, difference, is_better))
    return Comparison(systems, results, intervals, tuple(pairs))


def _tested(a: Measured, b: Measured, samples: int, seed: int) -> Difference:
    """B less A."""
    return permutation(a.rows, b.rows, a.finish, samples=samples, seed=seed)


def differing(results: Sequence[TaskResult], most: int = 200) -> list[int]:
    """Examples on which the systems part, the widest first; by place."""

    def spread(place: int) -> float:
        values = [_goodness(result.records[place]) for result in results]
        return float(np.ptp(values))

    places = [p for p in range(results[0].num_examples) if spread(p) > 0]
    return sorted(places, key=lambda p: (-spread(p), p))[:most]


def _goodness(record: dict[str, Any]) -> float:
    """How well an example was answered, to be compared between systems."""
    if "answer" in record:
        logp_c = np.array(record["logprobs"], np.float64)
        share = np.exp(logp_c - logp_c.max())
        hit = float(record["predicted"] == record["answer"])
        return 10 * hit + float(share[record["answer"]] / share.sum())
    if "text" in record:
        return float(record["text"].strip() in [text.strip() for text in record["references"]])
    return -record["nats"] / max(record["tokens"], 1)


def _names(systems: dict[str, str]) -> list[str]:
    """Names of the models, with a piece of the hash where two have the same."""
    names = list(systems.values())
    return [
        name if names.count(name) == 1 else f"{name} ({'/'.join([key[:8], *key.split('/')[1:]])})"
        for key, name in systems.items()
    ]


def _check_same(task: str, results: Sequence[TaskResult]) -> None:
    first = results[0]
    for other in results[1:]:
        if other.task_hash != first.task_hash or other.num_examples != first.num_examples:
            raise EvaluationError(
                f"task {task} was not the same for {first.model} ({first.num_examples} examples, "
                f"{first.task_hash[:8]}) and {other.model} ({other.num_examples}, "
                f"{other.task_hash[:8]}); run it for both from one file and with one --limit"
            )
        if (set(other.metrics), other.settings["kind"]) != (
            set(first.metrics),
            first.settings["kind"],
        ):
            raise EvaluationError(
                f"task {task} has {', '.join(first.metrics)} for {first.model} and "
                f"{', '.join(other.metrics)} for {other.model}; run it for both from one file"
            )
    for place in range(first.num_examples):
        check_same_question(task, place, [result.records[place] for result in results])
