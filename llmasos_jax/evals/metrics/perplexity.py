"""Perplexity: how many tokens a model hesitates between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.score import Score

if TYPE_CHECKING:
    from llmasos_jax.evals.metrics.scorer import Scorer
    from llmasos_jax.generate.model import Model


@dataclass(frozen=True)
class TextLoss:
    """What was found of one text.

    Attributes:
      nats: the sum of the negative log-likelihoods of its scored tokens.
      tokens: that were scored.
      bytes: of its UTF-8.
      words: runs of what is not white space.
    """

    nats: float
    tokens: int
    bytes: int
    words: int

    def row(self) -> list[float]:
        """The four figures, to be summed."""
        return [self.nats, self.tokens, self.bytes, self.words]


def perplexity(
    model: Model,
    texts: str | Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
) -> Score:
    """exp(nats / scored tokens) over a corpus, which is 2^(mean negative log2 probability).

    Each text is scored by itself. Its first token is scored only if the tokenizer adds a beginning
    token, which then stands before it. A text longer than the window is read in windows that begin
    `stride` tokens apart; each token is scored once, in the first window that has it, with at least
    `window - stride` tokens before it but in the text's first window.

    Args:
      model: a decoder with a tokenizer.
      texts: the corpus, or one text.
      window: tokens that are read at once, at least 2; None is the model's context length.
      stride: 1 to window - 1; None is half a window.

    Returns:
      A float, per token. In `details`: "per_byte" and "per_word", which models with other
      tokenizers can be compared by: exp(nats / bytes of UTF-8), exp(nats / words), words being runs
      of what is not white space; and the sums "nats", "tokens", "bytes" and "words".

    Raises:
      EvaluationError: no token to score, or an argument out of range.
      GenerationError: the model has no tokenizer.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.format.manifest import Manifest
      >>> from llmasos_jax.generate.load import init_model
      >>> manifest = Manifest("m", ModelConfig(259, 64, 1), tokenizer={"kind": "bytes"})
      >>> score = perplexity(init_model(manifest), ["Hello", "world"])
      >>> score.details["tokens"], 150 < score < 450
      (10, True)
    """
    from llmasos_jax.evals.metrics.scorer import scorer_of
    from llmasos_jax.generate.texts import read_texts

    losses = text_losses(
        model, scorer_of(model), read_texts("texts", texts), window=window, stride=stride
    )
    return perplexity_of(
        [sum(column) for column in zip(*(loss.row() for loss in losses), strict=True)]
    )


def perplexity_of(sums: Sequence[float]) -> Score:
    """The score of summed rows of `TextLoss`.

    Raises:
      EvaluationError: no token was scored.

    Example:
      >>> score = perplexity_of([8 * math.log(2), 4, 8, 2])
      >>> round(score, 6), round(score.details["per_byte"], 6)
      (4.0, 2.0)
    """
    nats, tokens, num_bytes, words = (float(x) for x in sums)
    if tokens < 1:
        raise EvaluationError("the texts have no token to score; give at least two tokens")
    details: dict[str, Any] = {
        "per_byte": _exp(nats / num_bytes),
        "per_word": _exp(nats / words) if words else math.nan,
        "nats": nats,
        "tokens": int(tokens),
        "bytes": int(num_bytes),
        "words": int(words),
    }
    return Score(_exp(nats / tokens), None, details)


def text_losses(
    model: Model,
    scorer: Scorer,
    texts: Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
) -> list[TextLoss]:
    """What `perplexity` sums up, text by text.

    Raises:
      EvaluationError: an argument is out of range.
    """
    from llmasos_jax.evals.metrics.scorer import Question

    window, stride = read_windows(scorer.context_length, window, stride)
    questions, owners = [], []
    for owner, text in enumerate(texts):
        for context, scored in windows(model.encode(text), window, stride):
            questions.append(Question(context, [scored]))
            owners.append(owner)
    nats = [0.0] * len(texts)
    tokens = [0] * len(texts)
    for owner, question, (found,) in zip(owners, questions, scorer.score(questions), strict=True):
        nats[owner] -= found.total
        tokens[owner] += len(question.continuations[0])
    return [
        TextLoss(n, t, len(text.encode("utf-8", "surrogatepass")), len(text.split()))
        for n, t, text in zip(nats, tokens, texts, strict=True)
    ]


def windows(
    ids: Sequence[int], window: int, stride: int
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Cuts ids into windows: of each what is only read, and what is scored after it.

    Example:
      >>> list(windows([0, 1, 2, 3, 4, 5], 4, 2))
      [([0], [1, 2, 3]), ([2, 3], [4, 5])]
    """
    scored = 1
    for begin in range(0, max(len(ids) - 1, 0), stride):
        end = min(begin + window, len(ids))
        if scored < end:
            yield ids[begin:scored], ids[scored:end]
        scored = end
        if end == len(ids):
            return


def read_windows(context_length: int, window: int | None, stride: int | None) -> tuple[int, int]:
    """Checks the arguments of `perplexity`.

    Raises:
      EvaluationError: one is out of range.

    Example:
      >>> read_windows(1024, None, None)
      (1024, 512)
    """
    for name, value in (("window", window), ("stride", stride)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise EvaluationError(f"{name}={value!r} is not possible; give a whole number or None")
    window = context_length if window is None else window
    if not 2 <= window <= context_length:
        raise EvaluationError(
            f"window={window} is not possible; give 2 to {context_length}, the model's context"
        )
    stride = window // 2 if stride is None else stride
    if not 1 <= stride < window:
        raise EvaluationError(
            f"stride={stride} is not possible with window={window}; give 1 to {window - 1}: "
            "each token needs one before it"
        )
    return window, stride


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf
