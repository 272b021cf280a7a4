"""Metrics of labels and probabilities: accuracy, F1, exact match, calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmasos_jax.errors import EvaluationError, did_you_mean

AVERAGES = ("binary", "macro", "micro")


def accuracy(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """The share of predictions that are the label, 0 to 1.

    Args:
      predictions: anything that can be compared: numbers, texts.
      labels: as many.

    Raises:
      EvaluationError: none, or not as many of one as of the other.

    Example:
      >>> accuracy(["a", "b", "b", "a"], ["a", "b", "a", "a"])
      0.75
    """
    check_pairs("predictions", predictions, "labels", labels)
    return sum(p == y for p, y in zip(predictions, labels, strict=True)) / len(labels)


def exact_match(
    predictions: Sequence[str], references: Sequence[Any], *, normalize: bool = False
) -> float:
    """The share of texts that are the reference, or one of several, 0 to 1.

    Args:
      predictions: texts.
      references: a text for each, or a list of texts for each.
      normalize: whether case and the amount of white space are of no account.

    Raises:
      EvaluationError: none, not as many of one as of the other, or what is no text.

    Example:
      >>> exact_match([" Paris", "Rome"], ["paris", ["Rome", "Roma"]])
      0.5
      >>> exact_match([" Paris", "Rome"], ["paris", ["Rome", "Roma"]], normalize=True)
      1.0
    """
    lists = check_texts("predictions", predictions, references)
    hits = [
        is_match(text, wanted, normalize=normalize)
        for text, wanted in zip(predictions, lists, strict=True)
    ]
    return sum(hits) / len(hits)


def is_match(text: str, references: Sequence[str], *, normalize: bool = False) -> bool:
    """Whether a text is one of the references.

    Example:
      >>> is_match("A  b", ["a b"], normalize=True)
      True
    """
    if not normalize:
        return text in references
    return _plain(text) in [_plain(wanted) for wanted in references]


def f1(
    predictions: Sequence[Any],
    labels: Sequence[Any],
    *,
    average: str = "binary",
    positive: Any = None,
) -> float:
    """F1 of labels, 0 to 1: 2 TP / (2 TP + FP + FN), and 0 where that is 0 / 0.

    Args:
      predictions: labels that were predicted.
      labels: those that are right.
      average: "binary", of the class `positive` alone; "macro", the mean of all classes that occur
        on either side; "micro", of the sums over classes, which for one label each is accuracy.
      positive: the class that "binary" is of; None is 1 or True.

    Raises:
      EvaluationError: an unknown average, or a positive class that does not occur.

    Example:
      >>> f1([1, 1, 0, 0], [1, 0, 1, 0])
      0.5
      >>> round(f1(["a", "b", "c"], ["a", "b", "b"], average="macro"), 4)
      0.5556
    """
    check_pairs("predictions", predictions, "labels", labels)
    if average not in AVERAGES:
        raise EvaluationError(
            f'average="{average}" is no way to average F1{did_you_mean(average, AVERAGES)}'
        )
    classes = list(dict.fromkeys([*labels, *predictions]))
    if average == "binary":
        positive = 1 if positive is None else positive
        if positive not in classes:
            raise EvaluationError(
                f"the positive class {positive!r} is neither predicted nor a label; they are "
                f'{classes[:5]}: give positive=, or average="macro"'
            )
        classes = [positive]
    elif positive is not None:
        raise EvaluationError(f'positive={positive!r} is for average="binary", not "{average}"')
    counts_c3 = np.sum(
        [f1_counts(p, y, classes) for p, y in zip(predictions, labels, strict=True)], 0
    )
    return f1_of(counts_c3, average)


def f1_counts(prediction: Any, label: Any, classes: Sequence[Any]) -> np.ndarray:
    """What one pair adds to true positives, false positives and false negatives, int [C, 3]."""
    rows = [
        (prediction == c == label, prediction == c != label, label == c != prediction)
        for c in classes
    ]
    return np.array(rows, np.int64).reshape(len(classes), 3)


def f1_of(counts_c3: np.ndarray, average: str) -> float:
    """F1 of summed counts [C, 3]; a class that occurs nowhere has no part in a mean."""
    if average == "micro":
        counts_c3 = counts_c3.sum(0, keepdims=True)
    tp_c, fp_c, fn_c = counts_c3.T
    below_c = 2 * tp_c + fp_c + fn_c
    occurs_c = below_c > 0
    return float(np.mean(2 * tp_c[occurs_c] / below_c[occurs_c])) if occurs_c.any() else 0.0


def calibration_error(
    confidences: Sequence[float], is_correct: Sequence[Any], *, bins: int = 10
) -> float:
    """Expected calibration error, 0 to 1.

    Predictions are sorted by confidence into bins of equal width, each open below and closed above
    (the first one holds 0 too); the error is the mean over predictions of |accuracy - confidence|,
    both taken as the means of the bin (Guo et al., 2017, 1706.04599, equation 3).

    Args:
      confidences: the probability that each prediction was given, 0 to 1.
      is_correct: whether it was right.
      bins: how many.

    Raises:
      EvaluationError: a confidence is no probability, or there is no bin.

    Example:
      >>> round(calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0]), 4)
      0.1
    """
    check_pairs("confidences", confidences, "is_correct", is_correct)
    rows = [calibration_row(c, bool(r), bins) for c, r in zip(confidences, is_correct, strict=True)]
    return calibration_of(np.sum(rows, axis=0))


def calibration_row(confidence: float, is_correct: bool, bins: int = 10) -> np.ndarray:
    """What one prediction adds to its bin's confidence, hits and count, float64 [bins * 3].

    Raises:
      EvaluationError: the confidence is no probability, or there is no bin.
    """
    if not isinstance(bins, int) or bins < 1:
        raise EvaluationError(f"bins={bins!r} is not possible; give a whole number above 0")
    if not 0.0 <= confidence <= 1.0:
        raise EvaluationError(f"a confidence is {confidence!r}; each must be from 0 to 1")
    row_b3 = np.zeros((bins, 3))
    # Beside the edges themselves: 0.07 * 100 is above 7.
    place = int(np.searchsorted(np.arange(1, bins) / bins, confidence))
    row_b3[place] = (confidence, is_correct, 1.0)
    return row_b3.reshape(-1)


def calibration_of(sums: np.ndarray) -> float:
    """The error of summed rows."""
    confidence_b, hits_b, count_b = sums.reshape(-1, 3).T
    return float(np.abs(hits_b - confidence_b).sum() / count_b.sum())


def check_pairs(name: str, values: Any, other_name: str, others: Any) -> None:
    """Raises EvaluationError unless there are values, and as many of one as of the other."""
    for title, given in ((name, values), (other_name, others)):
        if isinstance(given, str) or not hasattr(given, "__len__"):
            kind = type(given).__name__
            raise EvaluationError(f"{title} is a {kind}; give a list with one for each example")
    if len(values) != len(others) or not len(values):
        raise EvaluationError(
            f"{len(values)} {name} and {len(others)} {other_name}; give one of each for every "
            "example, and at least one"
        )


def check_texts(name: str, texts: Sequence[str], references: Sequence[Any]) -> list[list[str]]:
    """The references of each text as a list of at least one.

    Raises:
      EvaluationError: not as many of one as of the other, none, or what is no text.
    """
    check_pairs(name, texts, "references", references)
    lists = [
        [r] if isinstance(r, str) or not hasattr(r, "__iter__") else list(r) for r in references
    ]
    for i, (text, wanted) in enumerate(zip(texts, lists, strict=True)):
        if not wanted or not all(isinstance(t, str) for t in (text, *wanted)):
            raise EvaluationError(
                f"example {i} has {text!r:.40} with references {wanted!r:.60}; give a text, and a "
                "text or a list of at least one"
            )
    return lists


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
