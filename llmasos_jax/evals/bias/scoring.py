"""The log-probability of words after a text, for many texts at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.scorer import Question, scorer_of
from llmasos_jax.generate.model import Model


def continuation_logprobs(
    model: Model, texts: Sequence[str], continuations: Sequence[str]
) -> np.ndarray:
    """The log-probability of each continuation after its text, in nats.

    Tokens are those of both together; what both have in common with the text alone is given, the
    rest is scored. A text that many continuations follow is read once.

    Args:
      model: a decoder.
      texts: N of them.
      continuations: N of them, each with its space in front where there is one.

    Returns:
      float64 [N].

    Raises:
      EvaluationError: the model is no decoder, or a continuation adds no token.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.format.manifest import Manifest
      >>> from llmasos_jax.generate.load import init_model
      >>> manifest = Manifest("m", ModelConfig(259, 64, 1), tokenizer={"kind": "bytes"})
      >>> continuation_logprobs(init_model(manifest), ["a", "a"], [" b", " c"]).shape
      (2,)
    """
    scorer = scorer_of(model)
    followed: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for i, (text, more) in enumerate(zip(texts, continuations, strict=True)):
        before, whole = model.encode(text), model.encode(text + more)
        same = 0
        while same < min(len(before), len(whole)) and before[same] == whole[same]:
            same += 1
        if not 0 < same < len(whole):
            raise EvaluationError(
                f"{more!r} after {text!r} is no token of its own; give other words"
            )
        followed.setdefault(tuple(whole[:same]), []).append((i, whole[same:]))
    found = np.zeros(len(texts))
    questions = [Question(text, [ids for _, ids in rows]) for text, rows in followed.items()]
    scored = scorer.score(questions)
    for rows, answers in zip(followed.values(), scored, strict=True):
        for (i, _), answer in zip(rows, answers, strict=True):
            found[i] = answer.total
    return found
