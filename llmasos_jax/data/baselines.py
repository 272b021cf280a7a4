"""What counting alone achieves: perplexities that a trained model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmasos_jax.data.objectives import causal
from llmasos_jax.data.packing import PackedRow, PackedRows, TokenDocuments
from llmasos_jax.data.pipeline import Data

_CHUNK_TOKENS = 1 << 23  # pairs counted at a time: 64 MiB of int64


@dataclass(frozen=True)
class Baselines:
    """Held-out perplexity per token of two models that only count.

    Attributes:
      unigram: of p(b) = (c(b) + 1) / (N + V).
      bigram: of p(b | a) = (c(a b) + 1) / (c(a) + V).
      tokens: how many held-out tokens were scored.
    """

    unigram: float
    bigram: float
    tokens: int


def baselines(data: Data, vocab_size: int, batches: int | None = None) -> Baselines:
    """Scores the tokens that a causal model is scored on: each but the first of its segment.

    Args:
      data: an opened run; the counts come from its training side.
      vocab_size: V of the add-one smoothing, the tokenizer's number of ids.
      batches: score the first so many held-out batches; None scores all.

    Returns:
      The perplexities: exp of the mean negative log-likelihood in nats.
    """
    rows = PackedRows(data.text.heldout, data.sequence_length)
    stop = len(rows) if batches is None else min(len(rows), batches * data.batch_size)
    before, after = scored_pairs(rows[:stop])
    unigram, contexts, pairs, pair_counts = _count(data.text.train, vocab_size)
    log_unigram = np.log((unigram[after] + 1) / (unigram.sum() + vocab_size))
    keys = before.astype(np.int64) * vocab_size + after
    found = np.minimum(np.searchsorted(pairs, keys), max(0, len(pairs) - 1))
    seen = (
        np.where(pairs[found] == keys, pair_counts[found], 0) if len(pairs) else np.zeros(len(keys))
    )
    log_bigram = np.log((seen + 1) / (contexts[before] + vocab_size))
    return Baselines(_perplexity(log_unigram), _perplexity(log_bigram), len(after))


def scored_pairs(rows: list[PackedRow]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (token before, token scored), int32 [scored tokens] each, in the rows' order.

    Example:
      >>> rows = PackedRows(TokenDocuments.from_lists([[1, 2, 3], [4, 5]]), sequence_length=4)
      >>> [a.tolist() for a in scored_pairs(rows[:])]
      [[1, 2, 4], [2, 3, 5]]
    """
    scored = [causal(row) for row in rows]
    masks = [batch.loss_weights > 0 for batch in scored]
    none = np.zeros(0, np.int32)
    before = [none] + [b.tokens[m] for b, m in zip(scored, masks, strict=True)]
    after = [none] + [b.targets[m] for b, m in zip(scored, masks, strict=True)]
    return np.concatenate(before), np.concatenate(after)


def _count(
    documents: TokenDocuments, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts what is trained on: every pair of neighbours within a document.

    Returns:
      Scored tokens by id [V], contexts by id [V], sorted keys a * V + b of the pairs, their counts.
    """
    unigram, contexts = np.zeros((2, vocab_size), dtype=np.int64)
    keys, counts = np.zeros((2, 0), dtype=np.int64)
    for start in range(0, documents.num_tokens - 1, _CHUNK_TOKENS):
        stop = min(start + _CHUNK_TOKENS, documents.num_tokens - 1)
        ids = documents.ids[start : stop + 1].astype(np.int64)
        is_pair = np.ones(stop - start, dtype=bool)
        last = documents.offsets[1:-1] - 1 - start  # a document's last token has no successor
        is_pair[last[(last >= 0) & (last < stop - start)]] = False
        before, after = ids[:-1][is_pair], ids[1:][is_pair]
        unigram += np.bincount(after, minlength=vocab_size)
        contexts += np.bincount(before, minlength=vocab_size)
        new_keys, new_counts = np.unique(before * vocab_size + after, return_counts=True)
        keys, inverse = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
        counts = np.bincount(
            inverse, weights=np.concatenate([counts, new_counts]), minlength=len(keys)
        ).astype(np.int64)
    return unigram, contexts, keys, counts


def _perplexity(log_probabilities: np.ndarray) -> float:
    return float(np.exp(-log_probabilities.mean())) if len(log_probabilities) else float("nan")
