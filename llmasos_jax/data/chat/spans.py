"""Which text of a conversation is the assistant's, whatever the template."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmasos_jax.data.chat.template import render
from llmasos_jax.errors import DataError, GenerationError

# No template trims, splits or escapes these; they differ from the first letter to the last.
_STAND_INS = ("QxzAnswerzxQ", "WyvReplyvyW")


@dataclass(frozen=True)
class Written:
    """A conversation as a template writes it.

    Attributes:
      text: all of it, without what an answer that is to come would stand after.
      spans: for each message of the assistant its characters, from after the header to the token
        that ends the turn.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def write(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    marks: Sequence[str] = (),
    bos_token: str = "",
    eos_token: str = "",
) -> Written:
    r"""Writes a conversation, and finds what in it is the assistant's.

    A message of the assistant is what the text has more after it than a prompt for it has:

        messages up to it, and the prompt     <user>Hi\n<bot>
        and with it                           <user>Hi\n<bot>Yes<end>\n
                                                             ^^^^^^^^    the line's end is left out

    Where a later message changes what is written of an earlier one (thoughts that are left out, a
    system's message that moves) the text has none of these in front. Then two other texts in the
    place of the message show where it stands, and the first of `marks` after it ends it.

    Args:
      template: Jinja text.
      messages: one {"role": text, "content": text} after the other.
      marks: special tokens as text; white space after one that ends a message is not of it.
      bos_token: the token that begins a text, as text.
      eos_token: the one that ends it.

    Raises:
      DataError: a message is nowhere in the text, or has no end; the template does not take the
        messages.

    Example:
      >>> template = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
      ...             "{% if add_generation_prompt %}<assistant>{% endif %}")
      >>> messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
      >>> found = write(template, messages, marks=("<end>",))
      >>> [found.text[start:stop] for start, stop in found.spans]
      ['Yes<end>']
    """
    run = functools.partial(_rendered, template, bos_token=bos_token, eos_token=eos_token)
    text = run(messages, add_generation_prompt=False)
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        span = _by_prefix(run, text, messages, i, marks)
        span = span or _by_stand_ins(run, text, messages, i, marks)
        if spans and span[0] < spans[-1][1]:
            raise DataError(_refusal(i, "stands before an earlier one"))
        spans.append(span)
    return Written(text, tuple(spans))


def _by_prefix(
    run: Any, text: str, messages: Sequence[Mapping[str, str]], i: int, marks: Sequence[str]
) -> tuple[int, int] | None:
    """The place of message i, where all that stands before its end is written as without the rest.

    None where it is not.
    """
    try:
        prompt = run(messages[:i], add_generation_prompt=True)
        is_last = i == len(messages) - 1
        so_far = text if is_last else run(messages[: i + 1], add_generation_prompt=False)
    except DataError:  # a template may refuse to stop there, or to begin with nothing
        return None
    if not (so_far.startswith(prompt) and text.startswith(so_far)):
        return None
    bare = so_far.rstrip()
    is_marked = any(bare.endswith(mark) for mark in marks)
    start, stop = len(prompt), len(bare) if is_marked else len(so_far)
    return (start, stop) if start < stop else None


def _by_stand_ins(
    run: Any, text: str, messages: Sequence[Mapping[str, str]], i: int, marks: Sequence[str]
) -> tuple[int, int]:
    """The place of message i, by what does not change when something else is said there."""
    others = []
    for said in _STAND_INS:
        changed = [dict(message) for message in messages]
        changed[i]["content"] = said
        others.append(run(changed, add_generation_prompt=False))
    start = len(os.path.commonprefix(others))
    after = os.path.commonprefix([other[::-1] for other in others])[::-1]
    is_found = all(other[start : len(other) - len(after)] in _STAND_INS for other in others)
    stop = len(text) - len(after)
    is_there = text.startswith(others[0][:start]) and text.endswith(after) and start < stop
    if not (is_found and is_there):
        raise DataError(_refusal(i, "cannot be told from the rest of the text"))
    tail = after.lstrip()
    mark = max((m for m in marks if tail.startswith(m)), key=len, default=None)
    if mark is None:
        raise DataError(_refusal(i, "is followed by no special token that ends it"))
    return start, stop + len(after) - len(tail) + len(mark)


def _rendered(template: str, messages: Sequence[Mapping[str, str]], **given: Any) -> str:
    try:
        return render(template, messages, **given)
    except GenerationError as error:
        raise DataError(f"{error}; correct the messages, or set finetune.chat_template") from error


def _refusal(i: int, what: str) -> str:
    return (
        f"messages[{i}] {what}, as the chat template writes it; set finetune.chat_template to one "
        "that writes each message after those before it and ends it with a special token"
    )
