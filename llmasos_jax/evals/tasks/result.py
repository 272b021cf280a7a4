"""What came out of a task: figures, and all that is needed to find them again."""

from __future__ import annotations

import html
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmasos_jax import __version__
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.tasks.checked import check_record, check_result

_PACKAGES = ("jax", "numpy", "sacrebleu", "rouge-score")


@dataclass(frozen=True)
class Figure:
    """A metric's value with its 95% bootstrap interval, and sacrebleu's signature if it has one."""

    value: float
    low: float
    high: float
    signature: str | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class TaskResult:
    """What `evaluate` gives.

    Attributes:
      task: its name.
      task_hash: SHA-256 of its keys and its data.
      model: the model's name.
      model_hash: SHA-256 of its parameters, tokenizer and weights.
      metrics: figures by name.
      num_examples: that were scored.
      num_truncated: whose prompt lost tokens at its beginning, because it is longer than the
        context.
      seed: of sampling and of the intervals.
      settings: how it ran: kind, dtype, platform, limit, and what the task asks of generation.
      versions: of programs.
      seconds: that this run took, without what was there already.
      examples: file beside this one with a line for each example; None if nothing was kept.
      records: the same, in memory.
    """

    task: str
    task_hash: str
    model: str
    model_hash: str
    metrics: Mapping[str, Figure]
    num_examples: int
    num_truncated: int
    seed: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    examples: str | None = None
    records: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)

    def __str__(self) -> str:
        width = max(map(len, self.metrics))
        lines = [f"{self.task}: {self.model}, {self.num_examples} examples"]
        lines += [f"  {name:<{width}}  {figure}" for name, figure in self.metrics.items()]
        if self.num_truncated:
            lines.append(f"  {self.num_truncated} prompts were cut to the model's context")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{figure}</td></tr>"
            for name, figure in self.metrics.items()
        )
        title = html.escape(f"{self.task}: {self.model}, {self.num_examples} examples")
        return f"<table><caption>{title}</caption>{rows}</table>"

    def to_json(self) -> str:
        """The text of a result's file."""
        fields = asdict(self)
        del fields["records"]
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def read_result(path: Path) -> TaskResult:
    """Reads a result and the examples beside it.

    Raises:
      EvaluationError: it is none, or its examples are not there.
    """
    try:
        fields = json.loads(path.read_bytes())
        check_result(fields)
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{path} is no result of `llmasos eval` ({error}); give the .json that it wrote"
        ) from error
    metrics = {name: Figure(**figure) for name, figure in fields["metrics"].items()}
    result = TaskResult(**{**fields, "metrics": metrics})
    if result.examples is None:
        raise EvaluationError(f"{path} has no examples beside it; run `llmasos eval` with --out")
    file = path.parent / result.examples
    # A run with a smaller limit leaves a file with more of them beside its result.
    records = {
        record["index"]: record
        for record in read_records(file, result.settings["kind"])
        if record["index"] < result.num_examples
    }
    result.records.extend(records[i] for i in sorted(records))
    if len(result.records) != result.num_examples or not records:
        raise EvaluationError(
            f"{file} has {len(result.records)} of the {result.num_examples} examples that "
            f"{path.name} is of; run `llmasos eval` again, which goes on with it"
        )
    return result


def read_records(path: Path, kind: str) -> list[dict[str, Any]]:
    """The examples that are whole; the last line may be what a killed program left.

    Args:
      path: of the file.
      kind: of the task.

    Raises:
      EvaluationError: the file cannot be read, or is none of ours.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            check_record(record, kind)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(
                f"{path}, line {number} is no example ({error}); delete the file to begin again"
            ) from error
        records.append(record)
    return records


def versions() -> dict[str, str]:
    """Of the programs that a figure depends on."""
    found = {"python": platform.python_version(), "llmasos_jax": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
