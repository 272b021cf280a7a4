"""What one answer for all achieves: shares that a masked model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmasos_jax.data.batch import Batch
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.pipeline import Data
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary

_CHUNK_TOKENS = 1 << 23
_COUNTED_BATCHES = 256


@dataclass(frozen=True)
class TargetBaselines:
    """What is reached on held-out targets without looking at the text around them.

    Attributes:
      most_frequent: share of the targets that are the token which training has most often.
      unigram: perplexity of p(b) = (c(b) + 1) / (N + V), with counts of training.
      larger_class: share of the rows whose pair is of the more frequent kind; None without pairs.
    """

    most_frequent: float
    unigram: float
    larger_class: float | None


def target_baselines(
    data: Data, vocabulary: Vocabulary, *, is_masked: bool, batches: int | None = None
) -> TargetBaselines:
    """Scores the held-out targets of an objective, those of this process's rows.

    Args:
      data: an opened run.
      vocabulary: of its tokenizer.
      is_masked: whether targets are masked tokens: counts then come from the whole training text,
        without special tokens. Else they come from the targets of 256 training batches.
      batches: score the first so many held-out batches; None scores all.
    """
    stop = len(data.heldout) if batches is None else min(batches, len(data.heldout))
    heldout = [data.heldout[index] for index in range(stop)]
    if is_masked:
        counts_v = count_text(data.text.train, vocabulary)
    else:
        trained = [data.train[step] for step in range(_COUNTED_BATCHES)]
        counts_v = np.bincount(_targets(trained), minlength=vocabulary.size)
    targets = _targets(heldout)
    probability_v = (counts_v + 1) / (counts_v.sum() + vocabulary.size)
    return TargetBaselines(
        most_frequent=float(np.mean(targets == np.argmax(counts_v))),
        unigram=float(np.exp(-np.mean(np.log(probability_v[targets])))),
        larger_class=_larger_class(heldout),
    )


def count_text(documents: TokenDocuments, vocabulary: Vocabulary) -> np.ndarray:
    """Counts the ids of a text, int64 [V]; special ids, which are never masked, are not counted.

    Example:
      >>> from llmasos_jax.data.tokenizers.vocabulary import stand_in
      >>> count_text(TokenDocuments.from_lists([[1, 4, 4, 2]]), stand_in(5)).tolist()
      [0, 0, 0, 0, 2]
    """
    counts_v = np.zeros(vocabulary.size, dtype=np.int64)
    for start in range(0, documents.num_tokens, _CHUNK_TOKENS):
        ids = documents.ids[start : start + _CHUNK_TOKENS].astype(np.int64)
        counts_v += np.bincount(ids, minlength=vocabulary.size)
    counts_v[list(vocabulary.special_ids)] = 0
    return counts_v


def _targets(batches: list[Batch]) -> np.ndarray:
    """The targets that count, int [targets]."""
    return np.concatenate(
        [np.zeros(0, np.int64), *(b.targets[b.loss_weights > 0] for b in batches)]
    )


def _larger_class(batches: list[Batch]) -> float | None:
    if not batches or "next_sentence" not in batches[0].extra:
        return None
    kinds = [b.extra["next_sentence"][(b.segment_ids > 0).any(axis=-1)] for b in batches]
    share = float(np.mean(np.concatenate(kinds)))
    return max(share, 1.0 - share)
