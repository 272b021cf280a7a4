"""Where the texts of an environment come from: given ones, or a model that writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer
from llmasos_jax.errors import EvaluationError
from llmasos_jax.generate.model import Model

# Texts for an environment that was given none: enough to check that it works.
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Pack my box with five dozen liquor jugs; then count them twice, and write it down.",
    "How vexingly quick daft zebras jump! Nobody saw where they went after that.",
)


class World(Protocol):
    """What gives the ids of a text, as many as asked for."""

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Ids int64 [num] or fewer, two at least; a function of `rng` alone."""
        ...


class GivenTexts:
    """Pieces of given texts, each beginning anywhere."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        rows = [np.asarray(tokenizer.encode(text), np.int64) for text in texts]
        self._rows = [ids for ids in rows if len(ids) > 1]
        if not self._rows:
            raise EvaluationError("no text has two tokens, so there is none to predict; give texts")

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """A piece of one text."""
        ids = self._rows[int(rng.integers(len(self._rows)))]
        start = int(rng.integers(max(1, len(ids) - num + 1)))
        return ids[start : start + num]


class WrittenTexts:
    """Texts that a model writes after prompts: then the model is the environment."""

    def __init__(self, model: Model, prompts: Sequence[str], tokenizer: Tokenizer) -> None:
        if not prompts:
            raise EvaluationError("a model that writes needs a prompt at least; give texts")
        self._model, self._prompts, self._tokenizer = model, list(prompts), tokenizer

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """A prompt and what the model makes of it."""
        prompt = self._prompts[int(rng.integers(len(self._prompts)))]
        seed = int(rng.integers(2**32))
        text = self._model.generate_text(prompt, num, seed=seed, echo=True)
        ids = np.asarray(self._tokenizer.encode(text), np.int64)[:num]
        if len(ids) < 2:
            raise EvaluationError(
                f"{self._model!r} wrote nothing after {prompt!r:.40}, which is {len(ids)} token; "
                "give longer prompts"
            )
        return ids


def tokenizer_of(model: Model | None) -> tuple[Tokenizer, int]:
    """A model's tokenizer and how many ids there are; without a model, bytes."""
    if model is None:
        return ByteTokenizer(), ByteTokenizer.vocab_size
    if model.tokenizer is None:
        raise EvaluationError(f"{model!r} has no tokenizer, so it cannot read these texts")
    return model.tokenizer, model.config.vocab_size
