"""What a record is, told by its keys, and as what conversation it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmasos_jax.data.records.read import METADATA, Record
from llmasos_jax.data.records.turns import Message, one_of_text, turns_of
from llmasos_jax.data.text import shown
from llmasos_jax.errors import DataError


@dataclass(frozen=True)
class Shape:
    """A kind of record.

    Attributes:
      required: keys that it has.
      optional: keys that it may have.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = [*(f'"{key}"' for key in self.required), *(f'"{k}"?' for k in self.optional)]
        return "{" + ", ".join(names) + "}"


SHAPES: Mapping[str, Shape] = {
    "messages": Shape(("messages",)),
    "sharegpt": Shape(("conversations",)),
    "completion": Shape(("prompt", "completion")),
    "alpaca": Shape(("instruction", "output"), ("input",)),
    "preference": Shape(("prompt", "chosen", "rejected")),
}
CONVERSATIONS = ("messages", "sharegpt", "completion", "alpaca")
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_OBJECTIVES = {**dict.fromkeys(CONVERSATIONS, "sft"), "preference": "dpo"}


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with the assistant.

    Attributes:
      messages: system (or none), then user and assistant in turn.
      where: the record's place, for messages.
      is_plain: whether it came as a prompt and what follows it: two texts that need no template.
    """

    messages: tuple[Message, ...]
    where: str
    is_plain: bool = False


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt.

    Attributes:
      chosen: the conversation with the better answer.
      rejected: with the other one.
    """

    chosen: Dialogue
    rejected: Dialogue


def dialogues(records: Sequence[Record]) -> list[Dialogue]:
    r"""The conversations of records that all have one shape of `CONVERSATIONS`.

    Raises:
      DataError: a record is of another shape, or not right; says where, and what to do.

    Example:
      >>> records = [Record({"instruction": "Add.", "input": "1 2", "output": "3"}, "a.jsonl:1")]
      >>> [message["content"] for message in dialogues(records)[0].messages]
      ['Add.\n\n1 2', '3']
    """
    shape = _one_shape(records, CONVERSATIONS)
    return [_dialogue(record, shape) for record in records]


def preferences(records: Sequence[Record]) -> list[Preference]:
    """The pairs of records with "prompt", "chosen" and "rejected", texts or lists of messages.

    Raises:
      DataError: a record is of another shape, or not right; says where, and what to do.
    """
    _one_shape(records, ("preference",))
    return [_preference(record) for record in records]


def _one_shape(records: Sequence[Record], wanted: Sequence[str]) -> str:
    first = None
    for record in records:
        shape = _shape_of(record)
        if shape not in wanted:
            expected = " or ".join(str(SHAPES[name]) for name in wanted)
            raise DataError(
                f"{record.where}: a record of {SHAPES[shape]}; this objective reads {expected}: "
                f'set objective.name="{_OBJECTIVES[shape]}", or write it so'
            )
        first = first or shape
        if shape != first:
            raise DataError(
                f"{record.where}: a record of {SHAPES[shape]}, and {records[0].where} is one of "
                f"{SHAPES[first]}; keep one shape in a data set"
            )
    return first or wanted[0]


def _shape_of(record: Record) -> str:
    keys = set(record.values)

    def share(name: str) -> float:
        required = SHAPES[name].required
        return sum(key in keys for key in required) / len(required)

    name = max(SHAPES, key=share)
    shape = SHAPES[name]
    if not share(name):
        raise DataError(
            f"{record.where}: its keys ({_listed(keys)}) are none that are read; expected one of "
            f"{', '.join(map(str, SHAPES.values()))}"
        )
    if missing := [key for key in shape.required if key not in keys]:
        has = _listed(key for key in shape.required if key in keys)
        raise DataError(
            f"{record.where}: it has {has} and no {_listed(missing)}; expected {shape}: add it"
        )
    if unknown := sorted(keys - {*shape.required, *shape.optional}):
        raise DataError(
            f"{record.where}: {_listed(unknown)} is not read; a record of {shape} has these keys, "
            f'and may have {", ".join(METADATA)}: take it out, or put it into "metadata"'
        )
    return name


def _listed(keys: Any) -> str:
    return ", ".join(f'"{shown(str(key))}"' for key in sorted(keys)) or "none"


def _dialogue(record: Record, shape: str) -> Dialogue:
    values, where = record.values, record.where
    if shape == "messages":
        return Dialogue(turns_of(values["messages"], where, "messages"), where)
    if shape == "sharegpt":
        names = {"system": "system", **_SHAREGPT}
        path = "conversations"
        return Dialogue(turns_of(values[path], where, path, ("from", "value"), names), where)
    if shape == "completion":
        prompt, answer = (one_of_text(values[key], where, key) for key in ("prompt", "completion"))
        return _plain(prompt, answer, where)
    prompt = one_of_text(values["instruction"], where, "instruction")
    more = one_of_text(values.get("input", ""), where, "input", may_be_empty=True)
    answer = one_of_text(values["output"], where, "output")
    return _plain(f"{prompt}\n\n{more}" if more else prompt, answer, where)


def _plain(prompt: str, answer: str, where: str) -> Dialogue:
    messages = (
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    )
    return Dialogue(messages, where, is_plain=True)


def _preference(record: Record) -> Preference:
    values, where = record.values, record.where
    chosen, rejected = (_answered(values, key, where) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(
            f'{where}: "chosen" and "rejected" are equal, so there is nothing to prefer; take the '
            "record out"
        )
    return Preference(chosen, rejected)


def _answered(values: Mapping[str, Any], key: str, where: str) -> Dialogue:
    """The prompt with one of its answers."""
    prompt, answer = values["prompt"], values[key]
    if isinstance(prompt, str) and isinstance(answer, str):
        return _plain(one_of_text(prompt, where, "prompt"), one_of_text(answer, where, key), where)
    asked: tuple[Message, ...]
    if isinstance(prompt, str):
        asked = ({"role": "user", "content": one_of_text(prompt, where, "prompt")},)
    else:
        asked = turns_of(prompt, where, "prompt", last="user", or_text=True)
    if isinstance(answer, str):
        last = {"role": "assistant", "content": one_of_text(answer, where, key)}
        return Dialogue((*asked, last), where)
    turns = turns_of(answer, where, key, or_text=True)
    if turns[: len(asked)] == asked:  # some data sets write the prompt out in each answer
        turns = turns[len(asked) :]
    if len(turns) != 1:
        raise DataError(
            f'{where}: {key} has {len(turns)} messages after "prompt"; expected one, the '
            'assistant\'s: put those before it into "prompt"'
        )
    return Dialogue((*asked, *turns), where)
