"""What files say that may have been written by others: each field there, of its kind, in range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llmasos_jax.errors import EvaluationError, did_you_mean
from llmasos_jax.evals.tasks.measures import MEASURES

Is = Callable[[Any], bool]
Kind = tuple[str, Is]  # in words, and whether a value is one


def _list_of(kind: Kind) -> Kind:
    what, is_one = kind
    return f"a list of at least one, each {what}", (
        lambda x: type(x) is list and bool(x) and all(map(is_one, x))
    )


def _optional(kind: Kind) -> Kind:
    what, is_one = kind
    return f"{what} or null", lambda x: x is None or is_one(x)


_TEXT: Kind = ("a text", lambda x: type(x) is str)
_COUNT: Kind = (
    "a whole number, 0 to 2^53",
    lambda x: type(x) is int and 0 <= x <= 2**53,
)
_WHOLE: Kind = ("a whole number", lambda x: type(x) is int)
# Sums and squares of what a record has are numbers too. A figure may be as large as exp(700).
_NUMBER: Kind = ("a finite number", lambda x: type(x) in (int, float) and abs(x) <= 1e100)
_FIGURES: Kind = (
    "a finite number",
    lambda x: (type(x) is float and math.isfinite(x)) or (type(x) is int and abs(x) <= 2**53),
)
_TABLE: Kind = ("a table", lambda x: type(x) is dict)
_FILE: Kind = (
    "the name of a file beside this one",
    lambda x: (
        type(x) is str and x.isprintable() and not set(x) & set("/\\") and x.strip(". ") != ""
    ),
)

_RESULT: Mapping[str, Kind] = {
    **{"task": _TEXT, "task_hash": _TEXT, "model": _TEXT, "model_hash": _TEXT},
    **{"metrics": _TABLE, "num_examples": _COUNT, "num_truncated": _COUNT, "seed": _WHOLE},
    **{"settings": _TABLE, "versions": _TABLE, "seconds": _NUMBER, "examples": _optional(_FILE)},
}
_FIGURE: Mapping[str, Kind] = {
    **{"value": _FIGURES, "low": _FIGURES, "high": _FIGURES, "signature": _optional(_TEXT)},
}
# What a record has of each kind of task; more does no harm.
_RECORDS: Mapping[str, Mapping[str, Kind]] = {
    "choice": {
        **{"index": _COUNT, "prompt": _TEXT, "continuations": _list_of(_TEXT)},
        **{"answer": _COUNT, "logprobs": _list_of(_NUMBER), "predicted": _COUNT},
    },
    "generation": {
        **{"index": _COUNT, "prompt": _TEXT, "text": _TEXT, "references": _list_of(_TEXT)},
    },
    "perplexity": {
        **{"index": _COUNT, "prompt": _TEXT, "nats": _NUMBER},
        **{"tokens": _COUNT, "bytes": _COUNT, "words": _COUNT},
    },
}


def check_result(fields: Any) -> None:
    """Refuses what is no result's fields.

    Raises:
      ValueError: which field is missing or wrong, as part of a line.

    Example:
      >>> check_result({"task": 3})
      Traceback (most recent call last):
      ValueError: "task" is 3, expected a text
    """
    _check(fields, _RESULT, is_all=True)
    kind = fields["settings"].get("kind")
    if not isinstance(kind, str) or kind not in _RECORDS:
        raise ValueError(f'"settings.kind" is {_said(kind)}, expected one of {", ".join(_RECORDS)}')
    if not fields["metrics"]:
        raise ValueError('"metrics" is empty, expected at least one')
    for name, figure in fields["metrics"].items():
        if name not in MEASURES or MEASURES[name][0] != kind:
            own = [known for known, (of, _) in MEASURES.items() if of == kind]
            raise ValueError(f"{_said(name)} is no metric of {kind}{did_you_mean(name, own)}")
        try:
            _check(figure, _FIGURE, is_all=True)
        except ValueError as error:
            raise ValueError(f'of "metrics.{name}" {error}') from error


def check_record(record: Any, kind: str) -> None:
    """Refuses what is no record of a task of this kind.

    Raises:
      ValueError: which field is missing or wrong, as part of a line.

    Example:
      >>> check_record({"index": 0, "prompt": "a", "text": "b", "references": []}, "generation")
      Traceback (most recent call last):
      ValueError: "references" is [], expected a list of at least one, each a text
    """
    _check(record, _RECORDS[kind], is_all=False)
    if kind != "choice":
        return
    num = len(record["continuations"])
    if len(record["logprobs"]) != num:
        raise ValueError(f'"logprobs" has {len(record["logprobs"])}, "continuations" {num}')
    for name in ("answer", "predicted"):
        if record[name] >= num:
            raise ValueError(f'"{name}" is {record[name]}, expected 0 to {num - 1}')


def check_same_question(task: str, place: int, records: list[dict[str, Any]]) -> None:
    """Refuses records of one example that do not ask the same.

    Raises:
      EvaluationError: they do not.
    """
    for name in ("prompt", "continuations", "answer", "references", "bytes"):
        asked = [record.get(name) for record in records]
        if any(each != asked[0] for each in asked):
            raise EvaluationError(
                f'task {task}, example {place}: "{name}" is not the same in all results; run them '
                "again from one task file, with --fresh"
            )


def _check(fields: Any, kinds: Mapping[str, Kind], *, is_all: bool) -> None:
    if type(fields) is not dict:
        raise ValueError(f"it is {_said(fields)}, expected a table")
    for name, (what, is_one) in kinds.items():
        if name not in fields:
            raise ValueError(f'"{name}" is missing')
        if not is_one(fields[name]):
            raise ValueError(f'"{name}" is {_said(fields[name])}, expected {what}')
    more = sorted(set(fields) - set(kinds))
    if is_all and more:
        raise ValueError(f"{_said(more[0])} is no field of it")


def _said(value: Any) -> str:
    """A value in a line, cut where it is long."""
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**18 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
