"""The messages of a conversation, checked: who speaks, in what order, and that it is text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmasos_jax.data.text import shown
from llmasos_jax.errors import DataError, did_you_mean

Message = dict[str, str]
ROLES = {"system": "system", "user": "user", "assistant": "assistant"}


def turns_of(
    value: Any,
    where: str,
    path: str,
    keys: tuple[str, str] = ("role", "content"),
    roles: Mapping[str, str] = ROLES,
    last: str = "assistant",
    or_text: bool = False,
) -> tuple[Message, ...]:
    """The messages that a field of a record holds.

    Args:
      value: the field.
      where: the record's place, for messages.
      path: what the field is called.
      keys: what a message calls its role and its text.
      roles: names of roles, and what each is called here.
      last: whose the last message has to be.
      or_text: whether the field may as well be a text (which the caller reads).

    Raises:
      DataError: there is none, one is of the wrong form, or they do not take turns.

    Example:
      >>> turns_of([{"from": "gpt", "value": "Hi"}], "a:1", "c", ("from", "value"),
      ...          {"gpt": "assistant"})
      ({'role': 'assistant', 'content': 'Hi'},)
    """
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"{where}: {path} is {kind(value)}; expected a list of messages, such as "
            f'{{"{keys[0]}": "{next(n for n, r in roles.items() if r == last)}", '
            f'"{keys[1]}": "..."}}{", or a text" if or_text else ""}'
        )
    if not value:
        raise DataError(
            f"{where}: {path} is an empty conversation; expected messages that end with the "
            f"{last}'s: take the record out"
        )
    turns = [_turn(item, where, f"{path}[{i}]", keys, roles) for i, item in enumerate(value)]
    for i, turn in enumerate(turns):
        _check_order(turns[i - 1]["role"] if i else None, turn["role"], f"{where}: {path}[{i}]")
    if turns[-1]["role"] != last:
        does = "learns to write the assistant's" if last == "assistant" else "answers the user's"
        raise DataError(
            f"{where}: the last message of {path} is the {turns[-1]['role']}'s; the model {does}: "
            f"end with one of the {last}"
        )
    return tuple(turns)


def _check_order(before: str | None, role: str, where: str) -> None:
    if role == before:
        raise DataError(
            f"{where} is the {role}'s, as the one before it; roles take turns: join the two, or "
            "put in what is missing"
        )
    if role == "system" and before is not None:
        raise DataError(f"{where} is the system's; it stands first, or not at all: move it")


def _turn(
    item: Any, where: str, path: str, keys: tuple[str, str], roles: Mapping[str, str]
) -> Message:
    form = f'{{"{keys[0]}": ..., "{keys[1]}": ...}}'
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: {path} is {kind(item)}; expected {form}")
    for key in keys:
        if key not in item:
            raise DataError(f'{where}: {path} has no "{key}"; expected {form}')
    if unknown := sorted(str(key) for key in item if key not in keys):
        raise DataError(
            f'{where}: {path} has "{shown(unknown[0])}", which is not read; a message is {form}: '
            "take it out"
        )
    role = item[keys[0]]
    if not isinstance(role, str) or role not in roles:
        said = f'"{shown(role)}"' if isinstance(role, str) else kind(role)
        raise DataError(
            f"{where}: {path}.{keys[0]} is {said}, which is no role{did_you_mean(str(role), roles)}"
        )
    return {"role": roles[role], "content": one_of_text(item[keys[1]], where, f"{path}.{keys[1]}")}


def one_of_text(value: Any, where: str, path: str, *, may_be_empty: bool = False) -> str:
    """A field that has to be text.

    Raises:
      DataError: it is none, has nothing in it, or cannot be written in UTF-8.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: {path} is {kind(value)}; expected a text: write it as one")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{where}: {path} has no text in it; write some, or take the record out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {path} holds half of a surrogate pair at character {error.start}; take it "
            "out"
        ) from error
    return value


def kind(value: Any) -> str:
    """What a value is called in JSON, for messages.

    Example:
      >>> kind(None), kind([1])
      ('null', 'a list')
    """
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "bool": "true or false"}
    names |= {"int": "a number", "float": "a number", "str": "a text"}
    name = type(value).__name__
    return names.get(name, f"a {name}")
