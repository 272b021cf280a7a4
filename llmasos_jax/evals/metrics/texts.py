"""BLEU and chrF, computed by sacrebleu; Chinese is tokenised as such."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError, MissingExtraError, did_you_mean
from llmasos_jax.evals.metrics.labels import check_texts
from llmasos_jax.evals.metrics.score import Score

# Of the letters of all references, so many Han characters make a text Chinese.
_CHINESE_SHARE = 0.25


def bleu(
    hypotheses: Sequence[str], references: Sequence[Any], *, tokenize: str | None = None
) -> Score:
    """Corpus BLEU, 0 to 100 (Papineni et al., 2002), as sacrebleu computes it (Post, 2018).

    Args:
      hypotheses: texts.
      references: one text for each, or a list of texts for each.
      tokenize: one of sacrebleu's tokenizers; None is "zh" where the references are Chinese, "char"
        where they are Japanese, else "13a".

    Returns:
      A float; its `signature` is sacrebleu's, its `details` the precisions, lengths and brevity
      penalty. If no hypothesis has four tokens, orders that none of them has do not count
      ("eff:yes" in the signature), so that short equal texts score 100.

    Raises:
      EvaluationError: not as many of one as of the other, or an unknown tokenizer.
      MissingExtraError: sacrebleu is not installed.

    Example:
      >>> bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) > 99.99
      True
      >>> score = bleu(["你好"], ["你好"])
      >>> round(score, 4), "tok:zh" in score.signature
      (100.0, True)
    """
    streams = reference_streams(hypotheses, references)
    metric = bleu_metric(tokenize, streams)
    sums = sacrebleu_rows(metric, hypotheses, streams).sum(axis=0)
    metric = metric_for(metric, sums)
    found = _score(metric, sums)
    details = {
        "precisions": list(found.precisions),
        "brevity_penalty": found.bp,
        "hypothesis_length": found.sys_len,
        "reference_length": found.ref_len,
    }
    return Score(found.score, str(metric.get_signature()), details)


def chrf(hypotheses: Sequence[str], references: Sequence[Any], *, word_order: int = 0) -> Score:
    """Corpus chrF, 0 to 100 (Popović, 2015), as sacrebleu computes it.

    Args:
      hypotheses: texts.
      references: one text for each, or a list of texts for each.
      word_order: longest word n-grams beside those of up to 6 characters; 2 is chrF++.

    Returns:
      A float with sacrebleu's signature.

    Raises:
      EvaluationError: not as many of one as of the other.
      MissingExtraError: sacrebleu is not installed.

    Example:
      >>> round(chrf(["你好，世界"], ["你好，世界"]), 4)
      100.0
    """
    streams = reference_streams(hypotheses, references)
    metric = chrf_metric(streams, word_order)
    found = metric.corpus_score(list(hypotheses), streams)
    return Score(found.score, str(metric.get_signature()))


def reference_streams(hypotheses: Sequence[str], references: Sequence[Any]) -> list[list[str]]:
    """References as sacrebleu takes them: the first of all examples, the second of all, ...

    An example with fewer than others has its last one again, which changes no score.

    Raises:
      EvaluationError: not as many references as hypotheses, or what is no text.

    Example:
      >>> reference_streams(["x", "y"], ["a", ["b", "c"]])
      [['a', 'b'], ['a', 'c']]
    """
    lists = check_texts("hypotheses", hypotheses, references)
    most = max(map(len, lists))
    return [[wanted[min(i, len(wanted) - 1)] for wanted in lists] for i in range(most)]


def bleu_metric(tokenize: str | None, streams: list[list[str]]) -> Any:
    """The BLEU of sacrebleu, with the tokenizer of the references' language.

    Raises:
      EvaluationError: an unknown tokenizer, or one that cannot be had here.
      MissingExtraError: sacrebleu is not installed.
    """
    sacrebleu = _sacrebleu()
    name = tokenize or tokenizer_for(text for stream in streams for text in stream)
    known = sacrebleu.BLEU.TOKENIZERS
    if name not in known:
        raise EvaluationError(f'tokenize="{name}" is no tokenizer{did_you_mean(name, known)}')
    try:
        return sacrebleu.BLEU(tokenize=name)
    except (ImportError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise EvaluationError(f'tokenize="{name}" cannot be had here: {line}') from error


def chrf_metric(streams: list[list[str]], word_order: int = 0) -> Any:
    """The chrF of sacrebleu.

    Raises:
      EvaluationError: `word_order` is none.
      MissingExtraError: sacrebleu is not installed.
    """
    del streams  # chrF is of characters, whatever the language
    if not isinstance(word_order, int) or word_order < 0:
        raise EvaluationError(f"word_order={word_order!r} is not possible; give 0, or 2 for chrF++")
    return _sacrebleu().CHRF(word_order=word_order)


def sacrebleu_rows(metric: Any, hypotheses: Sequence[str], streams: list[list[str]]) -> np.ndarray:
    """What each example adds to the counts of BLEU or chrF, float64 [N, K]."""
    return np.array(metric._extract_corpus_statistics(list(hypotheses), streams), np.float64)


def sacrebleu_of(metric: Any, sums: np.ndarray) -> float:
    """The score of summed counts."""
    return float(_score(metric_for(metric, sums), sums).score)


def metric_for(metric: Any, sums: np.ndarray) -> Any:
    """The metric, or the BLEU of effective order where an order occurs in no hypothesis."""
    sacrebleu = _sacrebleu()
    totals = sums[2 + sacrebleu.metrics.bleu.MAX_NGRAM_ORDER :]
    if not isinstance(metric, sacrebleu.BLEU) or totals.all():
        return metric
    other = copy.copy(metric)
    other.effective_order = True
    return other


def _score(metric: Any, sums: np.ndarray) -> Any:
    return metric._compute_score_from_stats([int(n) for n in sums])


def tokenizer_for(texts: Any) -> str:
    """Which tokenizer of sacrebleu fits the language of texts: "zh", "char" or "13a".

    Example:
      >>> [tokenizer_for([text]) for text in ("你好，世界！", "Hello 世", "こんにちは")]
      ['zh', '13a', 'char']
    """
    letters = han = kana = 0
    for text in texts:
        for character in text:
            if character.isalpha():
                letters += 1
                han += is_han(character)
                kana += is_kana(character)
    if kana > _CHINESE_SHARE / 2 * letters:
        return "char"
    return "zh" if han > _CHINESE_SHARE * letters else "13a"


def is_han(character: str) -> bool:
    """Whether it is a Chinese character (also in Japanese)."""
    code = ord(character)
    return 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF


def is_kana(character: str) -> bool:
    """Whether it is hiragana or katakana."""
    return 0x3040 <= ord(character) <= 0x30FF


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtraError(
            f"BLEU and chrF are computed by sacrebleu ({error}); pip install 'llmasos-jax[eval]'"
        ) from error
    return sacrebleu
