"""`LLMasOS/TextTask-v0`: read a question, write an answer.

observation   a question, a text
action        an answer, a text
reward        what `reward` makes of both, by default 1 if they are equal but for outer spaces
an episode    `questions` of them
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmasos_jax.config.named import resolve
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.gym.library import gymnasium, spaces
from llmasos_jax.generate.model import Model

Reward = Callable[[str, str], float]
_WORDS = ("stone", "river", "lamp", "cloud", "paper", "garden", "seven", "north")


def exact(answer: str, right: str) -> float:
    """1 if both are the same but for outer spaces, else 0."""
    return float(answer.strip() == right.strip())


def prefix(answer: str, right: str) -> float:
    """The share of the right answer's characters that the answer begins with.

    Example:
      >>> prefix(" abcd", "abxd"), prefix("ab", "ab")
      (0.5, 1.0)
    """
    given, wanted = answer.strip(), right.strip()
    same = 0
    while same < min(len(given), len(wanted)) and given[same] == wanted[same]:
        same += 1
    return same / max(1, len(wanted))


REWARDS: dict[str, Reward] = {"exact": exact, "prefix": prefix}


class TextTaskEnv(gymnasium.Env):
    """One who is asked; the module says what is seen and done.

    Args:
      tasks: (question, answer) each; of a `world`, questions. None makes small ones up: copying,
        reversing, adding.
      world: a model whose greedy answers are the right ones; None takes those of `tasks`.
      reward: "exact", "prefix", a callable of answer and right answer, or where one is
        ("package.module:name").
      questions: in an episode.
      max_length: of an answer, characters; of a world's answer, tokens.
      charset: characters that an answer may have besides ASCII and those of the tasks; a right
        answer of a world keeps those alone.
      render_mode: "ansi", or None.

    Raises:
      EvaluationError: no task, or a size that is none.
      ConfigError: no such reward.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012, Gymnasium's

    def __init__(
        self,
        tasks: Sequence[Any] | None = None,
        *,
        world: Model | None = None,
        reward: str | Reward = "exact",
        questions: int = 4,
        max_length: int = 64,
        charset: str = "",
        render_mode: str | None = None,
    ) -> None:
        if questions < 1 or max_length < 1 or (tasks is not None and not len(tasks)):
            raise EvaluationError(
                f"questions={questions}, max_length={max_length}, {len(tasks or ())} tasks; give 1 "
                "of each at least"
            )
        if world is not None and tasks is None:
            raise EvaluationError("a world answers questions of yours; give them as tasks")
        self._tasks, self._world = tasks, world
        self._reward = resolve(reward, REWARDS, "reward") if isinstance(reward, str) else reward
        self._questions, self._max_length = questions, max_length
        seen = "".join(task if isinstance(task, str) else "".join(task) for task in tasks or ())
        self._charset = frozenset(string.printable + seen + charset)
        longest = max([64, *(len(t) if isinstance(t, str) else len(t[0]) for t in tasks or ())])
        self.observation_space = spaces.Text(longest, min_length=0, charset=self._charset)
        self.action_space = spaces.Text(max_length, min_length=0, charset=self._charset)
        self.render_mode = render_mode
        self._question, self._right, self._asked, self._said = "", "", 0, ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Asks the first question."""
        super().reset(seed=seed)
        self._asked, self._said = 0, ""
        return self._ask(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes the answer and asks the next question; after the last one it stands as it is."""
        reward, right = float(self._reward(action, self._right)), self._right
        self._said += f"{self._question}\n{action}\n"
        ended = self._asked == self._questions
        question = self._question if ended else self._ask()
        return question, reward, ended, False, {"answer": right}

    def render(self) -> str | None:
        """What was asked and answered so far."""
        return f"{self._said}{self._question}" if self.render_mode == "ansi" else None

    def _ask(self) -> str:
        self._asked += 1
        if self._tasks is None:
            self._question, self._right = _made_up(self.np_random)
            return self._question
        task = self._tasks[int(self.np_random.integers(len(self._tasks)))]
        self._question = task if isinstance(task, str) else task[0]
        if self._world is None:
            self._right = task[1]
        else:
            text = self._world.generate_text(self._question, self._max_length, 0.0)
            kept = "".join(c for c in text if c in self._charset)
            self._right = kept[: self._max_length]  # what can be said in answer
        return self._question


def _made_up(rng: np.random.Generator) -> tuple[str, str]:
    kind, (a, b) = int(rng.integers(3)), (int(x) for x in rng.integers(0, 50, 2))
    word = _WORDS[int(rng.integers(len(_WORDS)))]
    return (
        (f"Copy the word: {word}\nAnswer:", word),
        (f"Write backwards: {word}\nAnswer:", word[::-1]),
        (f"{a} + {b} =", str(a + b)),
    )[kind]
