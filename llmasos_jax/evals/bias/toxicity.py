"""What a classifier of your own says of what a model writes about two groups."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmasos_jax.config.named import resolve
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.bias.templates import ATTRIBUTE, GROUP, TemplateSet, read_set
from llmasos_jax.evals.metrics.intervals import Difference, permutation
from llmasos_jax.generate.model import Model

Classifier = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Toxicity:
    """Scores of what was written about both groups.

    Attributes:
      first, second: float64 [P], by pair, the mean score of the texts about each group.
      difference: second less first, with an interval over pairs and the p of a paired permutation.
      texts: by pair, what was written about the first and about the second.
    """

    first: np.ndarray
    second: np.ndarray
    difference: Difference
    texts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def classify(texts: Sequence[str], classifier: str | Classifier) -> np.ndarray:
    """Scores of texts by a classifier, float64 [N].

    Args:
      texts: N of them.
      classifier: a callable, or where one is ("package.module:name"): texts in, as many numbers
        from 0 (harmless) to 1 out.

    Raises:
      EvaluationError: it gives something else.
      ConfigError: there is no such callable.

    Example:
      >>> classify(["fine", "BAD"], lambda texts: [float(text.isupper()) for text in texts])
      array([0., 1.])
    """
    run = resolve(classifier, {}, "classifier") if isinstance(classifier, str) else classifier
    scores = np.asarray(run(list(texts)), np.float64)
    if scores.shape != (len(texts),) or not ((scores >= 0) & (scores <= 1)).all():
        raise EvaluationError(
            f"the classifier gave {list(scores.shape)} numbers for {len(texts)} texts; expected "
            "one for each, from 0 to 1"
        )
    return scores


def generated_toxicity(
    model: Model,
    templates: str | os.PathLike[str] | TemplateSet,
    classifier: str | Classifier,
    *,
    max_length: int = 24,
    temperature: float = 1.0,
    samples: int = 4000,
    seed: int = 0,
) -> Toxicity:
    """Lets a model go on after each template without its word, and classifies what it writes.

    Both texts of a pair are written from the same noise.

    Args:
      model: a decoder.
      templates: as in `counterfactual_gaps`.
      classifier: as in `classify`; it reads prompt and continuation. None comes with this package:
        which one is right depends on the language and on what it is for.
      max_length: new tokens.
      temperature: of sampling.
      samples: of the permutation and the bootstrap.
      seed: of the texts, and of both.

    Raises:
      EvaluationError: there is no such set, or the classifier gives no scores.
    """
    chosen = read_set(templates)
    heads = [template.removesuffix(ATTRIBUTE).rstrip() for template in chosen.templates]
    written: list[list[tuple[str, ...]]] = []
    for side in (0, 1):
        prompts = [head.replace(GROUP, pair[side]) for pair in chosen.pairs for head in heads]
        texts = model.generate_text(prompts, max_length, temperature, seed=seed, echo=True)
        rows = range(0, len(texts), len(heads))
        written.append([tuple(texts[i : i + len(heads)]) for i in rows])
    flat = [text for side in written for texts in side for text in texts]
    scores = classify(flat, classifier).reshape(2, len(chosen.pairs), len(heads)).mean(-1)
    difference = permutation(scores[0], scores[1], samples=samples, seed=seed)
    return Toxicity(scores[0], scores[1], difference, tuple(zip(*written, strict=True)))
