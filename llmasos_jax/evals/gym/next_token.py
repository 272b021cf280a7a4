"""`LLMasOS/NextToken-v0`: read a text token by token, and say each time what comes next.

observation   the last tokens, int64 [context]; V stands where there is none yet
action        a token, 0 to V - 1
reward        1 if it is the text's next one, else 0
an episode    `horizon` tokens of one text, or to its end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.gym.library import (
    AutoresetMode,
    VectorEnv,
    batch_space,
    gymnasium,
    seeding,
    spaces,
)
from llmasos_jax.evals.gym.worlds import TEXTS, GivenTexts, World, WrittenTexts, tokenizer_of
from llmasos_jax.generate.model import Model


class _Reading:
    """One reader: the rules, without Gymnasium."""

    def __init__(self, world: World, vocab_size: int, context: int, horizon: int) -> None:
        self._world, self._none = world, vocab_size
        self._context, self._horizon = context, horizon
        self.ids, self.place = np.zeros(0, np.int64), 0

    def begin(self, rng: np.random.Generator) -> np.ndarray:
        """A new text, whose first token is seen."""
        self.ids, self.place = self._world.draw(rng, self._horizon + 1), 1
        return self.seen()

    def seen(self) -> np.ndarray:
        """The last tokens, int64 [context]."""
        row = np.full(self._context, self._none, np.int64)
        last = self.ids[max(0, self.place - self._context) : self.place]
        row[len(row) - len(last) :] = last
        return row

    def act(self, token: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Observation, reward, whether the text ended, and what was right."""
        right = int(self.ids[self.place])
        self.place += 1
        return self.seen(), float(token == right), self.place == len(self.ids), {"token": right}


class NextTokenEnv(gymnasium.Env):
    """One reader; the module says what is seen and done.

    Args:
      texts: that are read; of a `world`, its prompts. None takes three of the package's.
      model: whose tokenizer and vocabulary there are; None reads bytes.
      world: a model that writes the texts, from the seed of the environment; None reads `texts`.
      context: tokens in sight.
      horizon: tokens of an episode.
      render_mode: "ansi", or None.

    Raises:
      EvaluationError: texts without two tokens, or a size that is none.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012, Gymnasium's

    def __init__(
        self,
        texts: Sequence[str] | None = None,
        *,
        model: Model | None = None,
        world: Model | None = None,
        context: int = 16,
        horizon: int = 32,
        render_mode: str | None = None,
    ) -> None:
        given, vocab_size, self._tokenizer = _world(texts, model, world, context, horizon)
        self._reading = _Reading(given, vocab_size, context, horizon)
        self.observation_space = spaces.MultiDiscrete(np.full(context, vocab_size + 1))
        self.action_space = spaces.Discrete(vocab_size)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins a text."""
        super().reset(seed=seed)
        return self._reading.begin(self.np_random), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes the guess and shows the token."""
        seen, reward, ended, info = self._reading.act(int(action))
        return seen, reward, ended, False, info

    def render(self) -> str | None:
        """What was read so far."""
        if self.render_mode != "ansi":
            return None
        return self._tokenizer.decode(self._reading.ids[: self._reading.place].tolist())


class NextTokenVectorEnv(VectorEnv):
    """Readers in step, so that a model that acts reads them as one batch.

    Reader i is the reader of a `NextTokenEnv` reset with `seed + i`. A reader whose text ended
    begins another one in the next step, whatever its action then.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        texts: Sequence[str] | None = None,
        *,
        model: Model | None = None,
        world: Model | None = None,
        context: int = 16,
        horizon: int = 32,
    ) -> None:
        if num_envs < 1:
            raise EvaluationError(f"num_envs={num_envs}; give 1 or more")
        given, vocab_size, _ = _world(texts, model, world, context, horizon)
        self.num_envs = num_envs
        self._readings = [_Reading(given, vocab_size, context, horizon) for _ in range(num_envs)]
        self._rngs = [np.random.default_rng() for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, bool)
        self.single_observation_space = spaces.MultiDiscrete(np.full(context, vocab_size + 1))
        self.single_action_space = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins all texts; a whole number seeds reader i with `seed + i`."""
        if isinstance(seed, (int, np.integer)):
            seed = [int(seed) + i for i in range(self.num_envs)]
        for i, one in enumerate(seed or ()):
            if one is not None:
                self._rngs[i] = seeding.np_random(one)[0]
        self._ended[:] = False
        pairs = zip(self._readings, self._rngs, strict=True)
        return np.stack([reading.begin(rng) for reading, rng in pairs]), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Takes a guess of each reader."""
        rewards, ended = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        seen = []
        for i, reading in enumerate(self._readings):
            if self._ended[i]:
                seen.append(reading.begin(self._rngs[i]))
                continue
            row, rewards[i], ended[i], _ = reading.act(int(actions[i]))
            seen.append(row)
        self._ended = ended
        return np.stack(seen), rewards, ended.copy(), np.zeros(self.num_envs, bool), {}


def _world(
    texts: Sequence[str] | None,
    model: Model | None,
    world: Model | None,
    context: int,
    horizon: int,
) -> tuple[World, int, Any]:
    if context < 1 or horizon < 1:
        raise EvaluationError(f"context={context}, horizon={horizon}; give 1 token at least")
    tokenizer, vocab_size = tokenizer_of(model)
    chosen = TEXTS if texts is None else texts
    if world is None:
        return GivenTexts(chosen, tokenizer), vocab_size, tokenizer
    return WrittenTexts(world, chosen, tokenizer), vocab_size, tokenizer
