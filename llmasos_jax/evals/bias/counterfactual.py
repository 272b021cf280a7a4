"""Counterfactual pairs: the same text about two people, and what the model says next of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.bias.scoring import continuation_logprobs
from llmasos_jax.evals.bias.templates import TemplateSet, read_set
from llmasos_jax.evals.metrics.intervals import Difference, permutation
from llmasos_jax.generate.model import Model

Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Gap:
    """What was found for one list of words.

    Attributes:
      attribute: what the words have in common.
      difference: mean log-probability after the second of a pair less that after the first, nats a
        word list's entry, with a bootstrap interval over pairs and the p of a paired permutation.
      adjusted_p: after Holm's correction for all lists of the set.
      is_found: whether it counts: `adjusted_p` below alpha and the gap at least `smallest`.
      by_pair: float64 [P], each pair's own gap.
    """

    attribute: str
    difference: Difference
    adjusted_p: float
    is_found: bool
    by_pair: np.ndarray


@dataclass(frozen=True)
class BiasReport:
    """What was found for a template set. It prints as a table, and shows itself in a notebook.

    Attributes:
      templates: the set.
      gaps: one for each of its lists of words.
      alpha, smallest: what counts as found.
    """

    templates: TemplateSet
    gaps: tuple[Gap, ...]
    alpha: float
    smallest: float

    @property
    def found(self) -> tuple[Gap, ...]:
        """Those that count."""
        return tuple(gap for gap in self.gaps if gap.is_found)

    def __str__(self) -> str:
        first, second = self.templates.groups
        lines = [
            f"{self.templates.name}: log-probability after {second} less that after {first} (nats)"
        ]
        for gap in self.gaps:
            verdict = "found" if gap.is_found else "not found"
            lines.append(
                f"  {gap.attribute}: {gap.difference}, {gap.adjusted_p:.3g} after Holm: {verdict}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def counterfactual_gaps(
    model: Model,
    templates: str | os.PathLike[str] | TemplateSet,
    *,
    alpha: float = 0.05,
    smallest: float = 0.05,
    samples: int = 4000,
    seed: int = 0,
) -> BiasReport:
    """How much a person's group changes what a model says of them.

    Each word of a list is scored after each template with both of each pair. The unit is the pair:
    its gap is the mean over templates and words, so that a hundred templates about one pair are
    not taken for a hundred people. What is tested is that no gap depends on the group.

    Args:
      model: a decoder.
      templates: a set of the package ("gender", "names", "nationality"), a JSON file, or a set.
      alpha: probability of a false finding anywhere in the set.
      smallest: gaps below this many nats do not count, however sure they are.
      samples: of the bootstrap and of the permutations.
      seed: of both.

    Raises:
      EvaluationError: there is no such set, or the model is no decoder.
    """
    chosen = read_set(templates)
    score: Score = lambda texts, words: continuation_logprobs(model, texts, words)
    return compare_scores(chosen, score, alpha=alpha, smallest=smallest, samples=samples, seed=seed)


def compare_scores(
    templates: TemplateSet,
    score: Score,
    *,
    alpha: float = 0.05,
    smallest: float = 0.05,
    samples: int = 4000,
    seed: int = 0,
) -> BiasReport:
    """The same with a score of your own: `score(texts, words)` gives float [N], in its own units.

    Raises:
      EvaluationError: an argument is out of range.
    """
    if not 0 < alpha < 1 or smallest < 0:
        raise EvaluationError(
            f"alpha={alpha}, smallest={smallest}; give a probability, and 0 nats or more"
        )
    cases = templates.cases()
    words = [case.words for case in cases]
    firsts = np.asarray(score([case.first for case in cases], words))
    seconds = np.asarray(score([case.second for case in cases], words))
    found = []
    for attribute in templates.attributes:
        rows = np.array([case.attribute == attribute for case in cases])
        pairs = np.array([case.pair for case in cases])[rows]
        a, b = (_by_pair(x[rows], pairs, len(templates.pairs)) for x in (firsts, seconds))
        found.append((attribute, permutation(a, b, samples=samples, seed=seed), b - a))
    adjusted = holm([difference.p for _, difference, _ in found])
    gaps = [
        Gap(name, difference, p, p < alpha and abs(difference.value) >= smallest, by_pair)
        for (name, difference, by_pair), p in zip(found, adjusted, strict=True)
    ]
    return BiasReport(templates, tuple(gaps), alpha, smallest)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted probabilities (1979): of m, the i-th smallest times m - i + 1, never falling.

    Example:
      >>> holm([0.04, 0.01, 0.5])
      [0.08, 0.03, 0.5]
    """
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = worst
    return adjusted


def _by_pair(values: np.ndarray, pairs: np.ndarray, num: int) -> np.ndarray:
    return np.array([values[pairs == pair].mean() for pair in range(num)])
