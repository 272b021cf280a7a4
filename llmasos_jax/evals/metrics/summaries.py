"""ROUGE, computed by rouge-score with a tokenizer that keeps every script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llmasos_jax.errors import MissingExtraError
from llmasos_jax.evals.metrics.texts import is_han, is_kana, reference_streams

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_LATIN = re.compile(r"[a-z0-9]+")


def rouge(hypotheses: Sequence[str], references: Sequence[Any]) -> dict[str, float]:
    """ROUGE F1 by kind, 0 to 1 (Lin, 2004), as rouge-score computes it, without stemming.

    Args:
      hypotheses: summaries; for "rougeLsum" with a sentence in each line.
      references: one text for each, or a list of texts for each, of which the best one counts.

    Returns:
      The mean over examples of "rouge1", "rouge2", "rougeL" and "rougeLsum".

    Raises:
      EvaluationError: not as many of one as of the other.
      MissingExtraError: rouge-score is not installed.

    Example:
      >>> rouge(["你好世界"], ["你好世界"])["rougeL"], rouge(["你好"], ["再见"])["rouge1"]
      (1.0, 0.0)
    """
    return dict(zip(KINDS, rouge_rows(hypotheses, references).mean(axis=0).tolist(), strict=True))


def rouge_rows(hypotheses: Sequence[str], references: Sequence[Any]) -> np.ndarray:
    """F1 of each example, float64 [N, 4] in the order of `KINDS`.

    Raises:
      EvaluationError: not as many of one as of the other.
      MissingExtraError: rouge-score is not installed.
    """
    streams = reference_streams(hypotheses, references)
    scorer = _scorer()
    rows = []
    for text, *wanted in zip(hypotheses, *streams, strict=True):
        found = scorer.score_multi(list(dict.fromkeys(wanted)), text)
        rows.append([found[kind].fmeasure for kind in KINDS])
    return np.array(rows, np.float64)


class WordsOfAnyScript:
    """Tokens for rouge-score: its own for Latin script, and words or characters of the others.

    Latin text is cut as rouge-score does: in lower case, at whatever is not a-z or 0-9. Each Han
    character and each kana is a token; of other scripts each run of letters, marks and digits.

    Example:
      >>> WordsOfAnyScript().tokenize("The cat's 猫咪 и кот")
      ['the', 'cat', 's', '猫', '咪', 'и', 'кот']
    """

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        text = text.lower()
        if text.isascii():
            return _LATIN.findall(text)
        return list(_tokens(text))


def _tokens(text: str) -> Iterator[str]:
    word, kind = "", None
    for character in text:
        found = _kind(character)
        # An accent of its own is one of the letter before it; of a Latin one it is a cut.
        if found != kind and unicodedata.category(character)[0] == "M":
            found = None
        if word and (found != kind or found == "character"):
            yield word
            word = ""
        if found is not None:
            word += character
        kind = found
    if word:
        yield word


def _kind(character: str) -> str | None:
    """What it is part of: a Latin word, itself, a word of another script, or nothing."""
    if character.isascii():
        return "latin" if character.isalnum() else None
    if is_han(character) or is_kana(character):
        return "character"
    # An accent is no letter to rouge-score, and on English the figures are to be its own.
    if unicodedata.category(character)[0] not in "LMN" or "LATIN" in unicodedata.name(
        character, ""
    ):
        return None
    return "other"


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError(
            f"ROUGE is computed by rouge-score ({error}); pip install 'llmasos-jax[eval]'"
        ) from error
    return RougeScorer(list(KINDS), tokenizer=WordsOfAnyScript())
