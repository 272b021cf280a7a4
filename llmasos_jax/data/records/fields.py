"""The fields of a labelled record, each checked with the place that it stands at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmasos_jax.data.records.read import Record
from llmasos_jax.data.records.turns import kind
from llmasos_jax.data.text import shown, utf8
from llmasos_jax.errors import DataError, TokenizerError, did_you_mean

_LISTED = 20  # labels that a message lists


def require(record: Record, needed: Sequence[str], others: Sequence[str], objective: str) -> None:
    """Refuses a record that lacks a field, or has one that nothing would read.

    Raises:
      DataError: it does.

    Example:
      >>> require(Record({"text": "a", "lable": 1}, "x.jsonl:3"), ("text", "label"), (), "classify")
      Traceback (most recent call last):
      llmasos_jax.errors.DataError: x.jsonl:3: no field "label" (there are: lable, text); \
objective.name="classify" reads text, label: did you mean "lable"?
    """
    reads = f'objective.name="{objective}" reads {", ".join((*needed, *others))}'
    for name in needed:
        if name not in record.values:
            there = ", ".join(shown(key, 20) for key in sorted(record.values)) or "none"
            near = did_you_mean(name, record.values)
            hint = near.removeprefix("; ") if near.startswith("; did") else "add it"
            raise DataError(
                f'{record.where}: no field "{name}" (there are: {there}); {reads}: {hint}'
            )
    for name in record.values:
        if name not in needed and name not in others:
            raise DataError(
                f'{record.where}: nothing would read the field "{shown(name)}"; {reads}: take it '
                "out, or rename it"
            )


def text(record: Record, name: str) -> str:
    """A text with something in it.

    Raises:
      DataError: it is none.
    """
    value = record.values[name]
    if not isinstance(value, str):
        raise DataError(
            f'{record.where}: "{name}" is {kind(value)} ({shown(value)}); expected a text'
        )
    return _filled(record, name, value)


def words(record: Record, name: str) -> list[str]:
    """A list of words, at least one.

    Raises:
      DataError: it is none, or a word is empty.
    """
    value = record.values[name]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise DataError(
            f'{record.where}: "{name}" is {kind(value)} ({shown(value)}); expected a list of words'
        )
    if not value:
        raise DataError(f'{record.where}: "{name}" is empty; take the record out')
    return [_filled(record, f"{name}[{i}]", word) for i, word in enumerate(value)]


def number(record: Record, name: str) -> float:
    """A finite number.

    Raises:
      DataError: it is none.
    """
    value = record.values[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(
            f'{record.where}: "{name}" is {kind(value)} ({shown(value)}); expected a number'
        )
    if abs(value) > 1e30 or not math.isfinite(value):  # isfinite takes no large integer
        raise DataError(
            f'{record.where}: "{name}" is {shown(value)}; expected a finite number below 1e30: '
            "correct it or take the record out"
        )
    return float(value)


def label(record: Record, name: str, labels: Sequence[str]) -> int:
    """The index of a label that is given by its name or by its index.

    Raises:
      DataError: there is no such label.

    Example:
      >>> label(Record({"label": "spam"}, "x.jsonl:1"), "label", ("ham", "spam"))
      1
    """
    return _index(record, name, record.values[name], labels)


def labels_of(
    record: Record, name: str, labels: Sequence[str], count: int, other: str
) -> list[int]:
    """As `label`, of a list that is as long as the field `other`.

    Raises:
      DataError: it is not, or has a label that is none.
    """
    value = record.values[name]
    if not isinstance(value, list) or len(value) != count:
        found = f"has {len(value)}" if isinstance(value, list) else f"is {kind(value)}"
        raise DataError(
            f'{record.where}: "{name}" {found}, and "{other}" has {count} words; give one for each'
        )
    return [_index(record, f"{name}[{i}]", item, labels) for i, item in enumerate(value)]


def _index(record: Record, name: str, value: Any, labels: Sequence[str]) -> int:
    listed = ", ".join(shown(known, 40) for known in labels[:_LISTED])
    listed += f", ... ({len(labels)})" if len(labels) > _LISTED else ""
    if isinstance(value, str):
        if value in labels:
            return labels.index(value)
        near = did_you_mean(value, labels)
        raise DataError(
            f'{record.where}: {name} "{shown(value)}" is none of model.classifier.labels ({listed})'
            f"{near if near.startswith('; did') else '; correct it, or add it to them'}"
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(
            f"{record.where}: {name} is {kind(value)} ({shown(value)}); expected a name of "
            f"model.classifier.labels ({listed}), or its index"
        )
    if not 0 <= value < len(labels):
        raise DataError(
            f"{record.where}: {name} {shown(value)} is out of range; expected 0 to "
            f"{len(labels) - 1}, an index of model.classifier.labels ({listed}), or a name of them"
        )
    if str(value) in labels and labels[value] != str(value):
        raise DataError(
            f'{record.where}: {name} {value} is the index of "{labels[value]}", and "{value}" is '
            f'the name of another label ({listed}); write names, "{value}"'
        )
    return value


def _filled(record: Record, name: str, value: str) -> str:
    if not value.strip():
        raise DataError(f'{record.where}: "{name}" has no text; fill it, or take the record out')
    try:
        utf8(value)
    except TokenizerError as error:
        raise DataError(f'{record.where}: "{name}": {error}') from error
    return value
