"""Which text of a conversation is the assistant's, whatever the template."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmasos_jax.data.chat.template import render
from llmasos_jax.errors import DataError, GenerationError

# No template trims, splits or escapes these; they differ from the first letter to the last.
_STAND_INS = ("QxzAnswerzxQ", "WyvReplyvyW")
_NEXT = {"role": "user", "content": _STAND_INS[1]}
_TAGS = ("\ufdd0", "\ufdd1")  # no characters of any text, says Unicode
_ALIKE = 8  # characters before a message that tell whether a prompt for it ends there, too


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

    A message of the assistant stands behind the prompt for it and goes on to the first of `marks`
    after what it says:

        messages up to it, and the prompt     <user>Hi\n<bot>
        and with it                           <user>Hi\n<bot>Yes<end>\n
                                                             ^^^^^^^^    the line's end is left out

    Where the template writes no prompt (it asks nothing of `add_generation_prompt`), or a later
    message changes what is written of an earlier one (thoughts that are left out, a system's
    message that moves), two other texts in the place of the message show where it stands. Where
    they change more than that place, the template's own `{% generation %}` tags say it, if it has
    one pair for each message of the assistant.

    `strftime_now` is not there: what is learned depends on no day.

    Args:
      template: Jinja text.
      messages: one {"role": text, "content": text} after the other.
      marks: special tokens as text.
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
    text = run(messages)
    mark = _any_of(tuple(marks))
    numbers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans: list[tuple[int, int]] = []
    try:
        for i in numbers:
            span = _span(run, text, messages, i, mark)
            if spans and span[0] < spans[-1][1]:
                raise DataError(_refusal(i, "stands before an earlier one"))
            spans.append(span)
    except DataError:
        tagged = _by_tags(run, text, messages) if "generation" in template else []
        if len(tagged) != len(numbers):
            raise
        spans = tagged
    return Written(text, tuple(spans))


def _span(
    run: Any,
    text: str,
    messages: Sequence[Mapping[str, str]],
    i: int,
    mark: re.Pattern[str],
) -> tuple[int, int]:
    """The place of message i."""
    is_last = i == len(messages) - 1
    asked = _attempt(run, messages[:i], add_generation_prompt=True) or ""
    bare = _attempt(run, messages[:i])
    so_far = text if is_last else _attempt(run, messages[: i + 1])
    has_prompt = bool(_more(asked, bare).strip())
    is_behind = has_prompt and text.startswith(asked)
    if is_behind and so_far is not None and text.startswith(so_far):
        turn = so_far[len(asked) :].rstrip()
        found = [match.end() for match in mark.finditer(turn)]
        if found == [len(turn)] and turn:  # nothing else can end it
            return len(asked), len(asked) + len(turn)
    before, after = _around(run, messages, i)
    stop = len(text) - len(after)
    start = len(asked) if is_behind else _behind(before, asked)
    is_there = text.endswith(after) and (is_behind or text.startswith(before))
    if not is_there or start >= stop:
        raise DataError(_refusal(i, "cannot be told from the rest of the text"))
    # What stands there whatever comes next is the message's; the rest may be the next one's header.
    if is_last:
        others = [] if has_prompt else [_after(run, messages, i, _NEXT)]
    else:
        others = [_after(run, messages[: i + 1], i)]
    common = os.path.commonprefix([after, *(other for other in others if other is not None)])
    match = mark.search(common)
    if match is not None and (has_prompt or match[0] != _begins_with(run, messages, mark)):
        return start, stop + match.end()
    is_whole = is_behind and common == (after if is_last else others[0])
    if not is_whole:
        raise DataError(_refusal(i, "is followed by no special token that ends it"))
    return start, stop + len(common)


def _more(asked: str, bare: str | None) -> str:
    """What `add_generation_prompt` adds to a text."""
    return asked[len(os.path.commonprefix([asked, bare or ""])) :]


def _around(run: Any, messages: Sequence[Mapping[str, str]], i: int) -> tuple[str, str]:
    """What stands before and after message i, by what does not change with what it says."""
    others = [run(_saying(messages, i, said)) for said in _STAND_INS]
    before = os.path.commonprefix(others)
    after = os.path.commonprefix([other[::-1] for other in others])[::-1]
    if any(other[len(before) : len(other) - len(after)] not in _STAND_INS for other in others):
        raise DataError(_refusal(i, "cannot be told from the rest of the text"))
    return before, after


def _behind(before: str, asked: str) -> int:
    """Where a message begins: white space that a prompt for it lacks is the message's.

    before   "[INST] Hi[/INST] "
    asked    "[INST] Hi[/INST]"

    The space may be in the message's first token, as it is where the model writes it.
    """
    bare, prompt = before.rstrip(), asked.rstrip()
    gap, kept = before[len(bare) :], asked[len(prompt) :]
    is_same = bool(prompt) and bare.endswith(prompt[-_ALIKE:]) and gap.startswith(kept)
    return len(bare) + len(kept) if is_same else len(before)


def _after(
    run: Any, messages: Sequence[Mapping[str, str]], i: int, *more: Mapping[str, str]
) -> str | None:
    """What follows message i in this conversation; None where the template refuses it."""
    text = _attempt(run, [*_saying(messages, i, _STAND_INS[0]), *more])
    return None if text is None else text.rpartition(_STAND_INS[0])[2]


def _begins_with(
    run: Any, messages: Sequence[Mapping[str, str]], mark: re.Pattern[str]
) -> str | None:
    """The last mark of the first header: one that begins a message ends none."""
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), 0)
    text = _attempt(run, _saying(messages[first : first + 1], 0, _STAND_INS[0])) or ""
    found = mark.findall(text.partition(_STAND_INS[0])[0])
    return found[-1] if found else None


def _saying(messages: Sequence[Mapping[str, str]], i: int, said: str) -> list[dict[str, str]]:
    return [dict(m, content=said) if j == i else dict(m) for j, m in enumerate(messages)]


def _by_tags(run: Any, text: str, messages: Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
    """What a template marks as the assistant's; nothing where the marks change the text."""
    begin, end = _TAGS
    marked = run(messages, tags=_TAGS)
    if begin in text or end in text or marked.replace(begin, "").replace(end, "") != text:
        return []
    spans = []
    for match in re.finditer(f"{begin}([^{begin}{end}]+){end}", marked):
        start = match.start() - 2 * len(spans)
        spans.append((start, start + len(match[1])))
    return spans


@functools.lru_cache(maxsize=8)
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of them, the longest first; without any, nothing."""
    longest = sorted((m for m in marks if m), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def _attempt(run: Any, messages: Sequence[Mapping[str, str]], **given: Any) -> str | None:
    """The text; None where a template refuses to stop there, or to begin with nothing."""
    try:
        return run(messages, **given)
    except DataError:
        return None


def _rendered(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = False,
    **given: Any,
) -> str:
    try:
        return render(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            has_clock=False,
            **given,
        )
    except GenerationError as error:
        raise DataError(f"{error}; correct the messages, or set finetune.chat_template") from error


def _refusal(i: int, what: str) -> str:
    return (
        f"messages[{i}] {what}, as the chat template writes it; set finetune.chat_template to one "
        "that writes each message after those before it and ends it with a special token"
    )
