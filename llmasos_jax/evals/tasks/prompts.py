"""What a model reads of each example: its prompt, and before it a few other ones with answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmasos_jax.errors import EvaluationError, did_you_mean

if TYPE_CHECKING:
    from llmasos_jax.evals.tasks.task import Task

# What `fewshot` has where a task does not say it.
DEFAULTS: Mapping[str, Any] = {"num": None, "seed": 0, "separator": "\n\n", "file": None}
# Turns of a conversation to one text, up to where the answer begins.
Chat = Callable[[list[dict[str, str]]], str]

_KINDS = {"num": int, "seed": int, "separator": str, "file": str}


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
      text: all that the model reads before it answers.
      shown: the places, in their file from 0, of the examples shown first; () where there are none.
    """

    text: str
    shown: tuple[int, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """What a record keeps of it."""
        return {"prompt": self.text, **({"shown": list(self.shown)} if self.shown else {})}


def read_fewshot(keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    r"""The keys of `fewshot`, each there.

    Args:
      keys: num, and where they are given seed, separator, file.
      where: for messages.

    Raises:
      EvaluationError: an unknown key, or a value of the wrong kind.

    Example:
      >>> read_fewshot({"num": 2}, "here")
      {'num': 2, 'seed': 0, 'separator': '\n\n', 'file': None}
    """
    for name, value in keys.items():
        if name not in DEFAULTS:
            raise EvaluationError(
                f'{where}: fewshot has no key "{name}"{did_you_mean(name, _KINDS)}'
            )
        if type(value) is not _KINDS[name] and (name, value) != ("file", None):
            raise EvaluationError(
                f"{where}: fewshot.{name}={value!r} is a {type(value).__name__}, expected "
                f"{_KINDS[name].__name__}"
            )
    if keys.get("num", 0) < 1:
        raise EvaluationError(f"{where}: fewshot={dict(keys)}; give num, 1 or more")
    return {**DEFAULTS, **keys}


def draws(seed: int, index: int, size: int) -> Iterator[int]:
    """Places below `size`, without end, for one example: the same on every machine and release.

    Place n is SHA-256 of "seed/index/n", as a number, modulo `size`.

    Example:
      >>> from itertools import islice
      >>> list(islice(draws(0, 0, 10), 4)) == list(islice(draws(0, 0, 10), 4))
      True
    """
    num = 0
    while True:
        digest = hashlib.sha256(f"{seed}/{index}/{num}".encode()).digest()
        yield int.from_bytes(digest, "big") % size
        num += 1


def choose(
    pool: Sequence[str], num: int, *, own: str, index: int = 0, seed: int = 0
) -> tuple[int, ...]:
    """Places of the examples that are shown before an asked one.

    Args:
      pool: prompts of the examples to draw from, of which at least `num` differ from `own` and
        from each other.
      num: how many.
      own: the asked example's prompt; none that asks the same is shown, nor two that do.
      index: the asked example's place.
      seed: of the draws.

    Example:
      >>> sorted(choose(["a", "b", "c", "b"], 2, own="b", index=1))
      [0, 2]
    """
    found: dict[str, int] = {}
    for place in draws(seed, index, len(pool)):
        if pool[place] != own:
            found.setdefault(pool[place], place)
        if len(found) == num:
            break
    return tuple(found.values())


def prompts_of(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    count: int,
    chat: Chat | None = None,
) -> list[Prompt]:
    """The prompts of the first `count` rows; those of more begin with the same ones.

    Args:
      task: what is asked.
      rows: its rows.
      shown: what `task.shown_rows` gave of them.
      count: of prompts.
      chat: where the task is asked as a conversation: the model's way to write one down.

    Raises:
      EvaluationError: a row lacks a field, or there are too few other examples.
    """
    own = [task.prompt_of(row, index) for index, row in enumerate(rows[:count])]
    start = [] if task.system is None else [{"role": "system", "content": task.system}]
    if task.fewshot is None:
        return [Prompt(text if chat is None else chat([*start, _user(text)])) for text in own]
    few = task.fewshot
    pool = [task.prompt_of(row, place) for place, row in enumerate(shown)]
    distinct = set(pool)
    found = []
    for index, text in enumerate(own):
        others = len(distinct) - (text in distinct)
        if others < few["num"]:
            raise EvaluationError(
                f"example {index} of {task.name}: fewshot.num={few['num']}, but {others} other "
                "prompts are there to draw from; give a smaller num, or a file with more examples"
            )
        places = choose(pool, few["num"], own=text, index=index, seed=few["seed"])
        answers = [task.solution_of(shown[place], place) for place in places]
        if chat is None:
            parts = [pool[place] + answer for place, answer in zip(places, answers, strict=True)]
            whole = few["separator"].join([*parts, text])
        else:
            turns = list(start)
            for place, answer in zip(places, answers, strict=True):
                turns += [_user(pool[place]), {"role": "assistant", "content": answer}]
            whole = chat([*turns, _user(text)])
        found.append(Prompt(whole, places))
    return found


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
