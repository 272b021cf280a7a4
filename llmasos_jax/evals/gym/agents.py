"""Who acts: a model, or chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.generate.model import Model


class Agent(Protocol):
    """What acts in many environments at once."""

    def act(self, observations: Any, space: Any, rng: np.random.Generator) -> Sequence[Any]:
        """One action for each observation; `space` is that of one action."""
        ...


class TokenAgent:
    """A model in `LLMasOS/NextToken-v0`: says the token that it thinks comes next.

    Args:
      model: a decoder with the environment's vocabulary.
      temperature: 0 takes the likeliest token.
    """

    def __init__(self, model: Model, temperature: float = 0.0) -> None:
        self._model, self._temperature = model, temperature

    def act(self, observations: Any, space: Any, rng: np.random.Generator) -> np.ndarray:
        """Tokens int64 [B] for observations [B, context]."""
        seen_bt = np.asarray(observations)
        num = int(space.n)
        if num != self._model.config.vocab_size:
            raise EvaluationError(
                f"the environment has {num} tokens, {self._model!r} another number; make it with "
                "model=, whose tokenizer this model has too"
            )
        mask_bt = (seen_bt < num).astype(np.int64)
        logits_btv = self._model.logits(np.where(mask_bt > 0, seen_bt, 0), mask_bt)
        logits_bv = np.asarray(logits_btv[:, -1], np.float64)
        if self._temperature == 0:
            return logits_bv.argmax(axis=1)
        noise_bv = rng.gumbel(size=logits_bv.shape)
        return (logits_bv / self._temperature + noise_bv).argmax(axis=1)


class TextAgent:
    """A model in `LLMasOS/TextTask-v0`: goes on after the question, to the end of a line.

    Args:
      model: a decoder with a tokenizer.
      max_length: new tokens at most.
      temperature: 0 is greedy.
      before: what stands before each question, such as solved examples.
    """

    def __init__(
        self, model: Model, max_length: int = 16, temperature: float = 0.0, before: str = ""
    ) -> None:
        self._model, self._max_length, self._before = model, max_length, before
        self._temperature = temperature

    def act(self, observations: Any, space: Any, rng: np.random.Generator) -> list[str]:
        """Answers; characters that the environment does not take are left out."""
        prompts = [self._before + text for text in observations]
        seed = int(rng.integers(2**32))
        answers = self._model.generate_text(
            prompts, self._max_length, self._temperature, stop=["\n"], seed=seed
        )
        kept = set(space.character_set)
        return ["".join(c for c in text if c in kept)[: space.max_length] for text in answers]


class ChanceAgent:
    """Every action as likely as any other: what a uniform model does."""

    def act(self, observations: Any, space: Any, rng: np.random.Generator) -> list[Any]:
        """Actions drawn from the space."""
        if hasattr(space, "n"):
            return rng.integers(int(space.n), size=len(observations)).tolist()
        letters = sorted(space.character_set)
        lengths = rng.integers(space.min_length, space.max_length + 1, len(observations))
        return ["".join(rng.choice(letters, int(n))) for n in lengths]
