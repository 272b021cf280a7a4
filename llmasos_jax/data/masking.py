"""Which tokens a masked language model has to find again, and what it reads in their place.

    tokens      [CLS] the cat sat on the mat [SEP]
    chosen                cat         the             15% of the tokens that are no special ones
    read        [CLS] the [M] sat on  dog mat [SEP]   80% the mask, 10% a random token, 10% itself
    positions   2 5 0                                 ascending; the rest is 0 with weight 0
    targets     cat the 0

The places of a row stand in arrays of one fixed size M, so that only they go through the output
layer. M is a little more than the rate asks for where whole words are chosen, because the last word
may go over: words are taken in random order while they fit the row's share; the one that would
cross it is taken with the probability with which the share is met on average, and skipped if it
does not fit M. So a row never has more than M, and over many rows the rate is the one asked for.

References:
  Devlin et al., 2018, arXiv 1810.04805, section 3.1 and appendix A.1 (and its later whole words).
  Joshi et al., 2019, SpanBERT, arXiv 1907.10529, section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llmasos_jax.config.schema import ObjectiveConfig
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import ConfigError

# What has more pieces is no word (text without blanks, a key in base 64): it counts as several of a
# few pieces, so that no row is one word alone.
MAX_WORD_PIECES = 16
_PART_PIECES = 4
_SLACK = 4  # places of a row beyond its share, for the word that crosses it
_SPANS_AT_ONCE = 32
_MAX_SPAN_DRAWS = 20


@dataclass(frozen=True)
class Masked:
    """A row after masking.

    Attributes:
      tokens: int32 [T], what the model reads.
      positions: int32 [M], the places to predict, ascending; 0 where not used.
      targets: int32 [M], the tokens that stood there; 0 where not used.
      weights: float32 [M], 1 where used, else 0.
    """

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def num_predictions(length: int, cfg: ObjectiveConfig) -> int:
    """Returns M, the most tokens that a row of `length` tokens predicts.

    Example:
      >>> num_predictions(128, ObjectiveConfig())
      20
      >>> num_predictions(128, ObjectiveConfig(mask_unit="word"))
      24
    """
    slack = 0 if cfg.mask_unit == "token" else _SLACK
    return max(1, min(length, math.ceil(cfg.mask_rate * length) + slack))


def mask_tokens(
    tokens: np.ndarray,
    is_maskable: np.ndarray,
    vocabulary: Vocabulary,
    cfg: ObjectiveConfig,
    rng: np.random.Generator,
    begins: np.ndarray | None = None,
) -> Masked:
    """Masks one row; for many rows make one `Masker`.

    Args:
      tokens: integers [T].
      is_maskable: bool [T], False on special tokens and padding.
      vocabulary: `mask_id`, `special_ids` (never drawn) and `is_inside_v` (words) are read.
      cfg: `mask_rate`, `mask_unit`, `mask_share`, `random_share`, `span_length`.
      rng: where all that is random comes from.
      begins: bool [T], where a text begins: no word or span goes over it. None: at the row's start.

    Raises:
      ConfigError: the vocabulary has no mask, or nothing to draw.

    Example:
      >>> from llmasos_jax.data.tokenizers.vocabulary import stand_in
      >>> tokens = np.arange(10, 20)
      >>> cfg = ObjectiveConfig(mask_rate=0.2, mask_share=1.0, random_share=0.0)
      >>> vocabulary = stand_in(1000)
      >>> rng = np.random.default_rng(0)
      >>> masked = mask_tokens(tokens, tokens > 10, vocabulary, cfg, rng)
      >>> (masked.tokens == vocabulary.mask_id).sum() == masked.weights.sum()
      np.True_
    """
    return Masker(vocabulary, cfg)(tokens, is_maskable, rng, begins)


class Masker:
    """Masks rows: `masker(tokens, is_maskable, rng, begins) -> Masked` (see `mask_tokens`).

    The share of a row is `mask_rate` of its maskable tokens, rounded up or down at random so that
    the mean is exact, and at least 1 where there is any. Of the tokens chosen, `mask_share` become
    the mask and `random_share` a random token that is not special: each token for itself, or, for
    `mask_unit` "span", each span as a whole (SpanBERT). A word is a token and those after it for
    which `is_inside_v` is True; what begins a text, or stands after a token that cannot be masked,
    begins one.

    Raises:
      ConfigError: the vocabulary has no mask, or nothing to draw.
    """

    def __init__(self, vocabulary: Vocabulary, cfg: ObjectiveConfig) -> None:
        if vocabulary.mask_id is None:
            raise ConfigError(
                f'objective.name="{cfg.name}" takes a tokenizer with a mask token ([MASK] or '
                "<mask>), this one has none; train one with tokenizer.kind="
                '"tokenizers" and model_type="wordpiece", or load one that has it'
            )
        self.cfg = cfg
        self.mask_id = vocabulary.mask_id
        self.is_inside_v = vocabulary.is_inside_v
        self.text_ids = np.flatnonzero(~vocabulary.is_special_v()).astype(np.int32)
        if not self.text_ids.size:
            raise ConfigError(
                f"all {vocabulary.size} ids of the tokenizer are special tokens; masking draws "
                "from those that are not: give a tokenizer with pieces of text"
            )
        is_by_span = cfg.mask_unit == "span"
        self._span_cdf = span_length_cdf(cfg.span_length) if is_by_span else np.zeros(0)

    def __call__(
        self,
        tokens: np.ndarray,
        is_maskable: np.ndarray,
        rng: np.random.Generator,
        begins: np.ndarray | None = None,
    ) -> Masked:
        """Returns the masked row; equal generators give equal ones."""
        size = num_predictions(len(tokens), self.cfg)
        read = np.array(tokens, dtype=np.int32)
        positions, targets = np.zeros((2, size), dtype=np.int32)
        weights = np.zeros(size, dtype=np.float32)
        maskable = np.flatnonzero(is_maskable)
        if maskable.size:
            share = min(size, max(1, int(self.cfg.mask_rate * maskable.size + rng.random())))
            if self.cfg.mask_unit == "token":
                chosen = np.sort(rng.permutation(maskable)[:share])
                draws = rng.random(chosen.size)
            else:
                is_border = np.diff(maskable, prepend=-2) > 1
                if begins is not None:
                    is_border |= begins[maskable]
                is_border[0] = True
                chosen, draws = self._choose_words(read, maskable, is_border, share, size, rng)
            count = chosen.size
            positions[:count], targets[:count], weights[:count] = chosen, read[chosen], 1.0
            random = self.text_ids[rng.integers(self.text_ids.size, size=count)]
            is_mask = draws < self.cfg.mask_share
            is_kept = draws >= self.cfg.mask_share + self.cfg.random_share
            read[chosen] = np.where(
                is_mask, self.mask_id, np.where(is_kept, targets[:count], random)
            )
        return Masked(read, positions, targets, weights)

    def _choose_words(
        self,
        tokens: np.ndarray,
        maskable: np.ndarray,
        is_border: np.ndarray,
        share: int,
        size: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns places, ascending, and for each the draw that says what is read there.

        `is_border` is True for those of the maskable tokens that no word or span may go over to.
        """
        starts_w = self._word_starts(tokens[maskable], is_border, size)
        lengths_w = np.diff(starts_w, append=maskable.size)
        num_words = starts_w.size
        if self.cfg.mask_unit == "word":
            order = rng.permutation(num_words)
            span_w = None
        else:
            order, span_w = self._span_order(starts_w, is_border, share, rng)
        is_taken_w = np.zeros(num_words, dtype=bool)
        is_taken_w[take_words(order, lengths_w, share, size, rng)] = True
        is_taken = np.repeat(is_taken_w, lengths_w)
        chosen = maskable[is_taken]
        if span_w is None:
            return chosen, rng.random(chosen.size)
        return chosen, rng.random(num_words)[np.repeat(span_w, lengths_w)[is_taken]]

    def _word_starts(self, ids: np.ndarray, is_border: np.ndarray, size: int) -> np.ndarray:
        """Returns which of the maskable tokens begin a word."""
        is_start = ~self.is_inside_v[ids] | is_border
        starts = np.flatnonzero(is_start)
        lengths = np.diff(starts, append=ids.size)
        if lengths.max() <= min(MAX_WORD_PIECES, size):
            return starts
        piece = np.arange(ids.size) - np.repeat(starts, lengths)
        is_long = np.repeat(lengths > min(MAX_WORD_PIECES, size), lengths)
        return np.flatnonzero(is_start | (is_long & (piece % min(_PART_PIECES, size) == 0)))

    def _span_order(
        self, starts_w: np.ndarray, is_border: np.ndarray, share: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns words by span, in the order of drawing, and for each word the span it is in.

        A span begins at any word with the same probability, ends before the next border, and is
        dropped where it meets one drawn before, as in SpanBERT.
        """
        num_words = starts_w.size
        bounds = [*starts_w.tolist(), is_border.size]
        borders = np.flatnonzero(is_border[starts_w[1:]]) + 1
        ends = np.append(borders, num_words)
        is_free = bytearray(b"\x01" * num_words)
        span_w = np.arange(num_words)
        order: list[int] = []
        covered = 0
        for _ in range(_MAX_SPAN_DRAWS):
            first = rng.integers(num_words, size=_SPANS_AT_ONCE)
            length = np.searchsorted(self._span_cdf, rng.random(_SPANS_AT_ONCE), side="right") + 1
            last = np.minimum(first + length, ends[np.searchsorted(borders, first, side="right")])
            for start, stop in zip(first.tolist(), last.tolist(), strict=True):
                if 0 in is_free[start:stop]:
                    continue
                is_free[start:stop] = bytes(stop - start)
                order += range(start, stop)
                span_w[start:stop] = start
                covered += bounds[stop] - bounds[start]
                if covered >= share:
                    return np.array(order), span_w
        # So high a rate that spans no longer fit between spans: the rest are words one by one.
        rest = np.flatnonzero(np.frombuffer(is_free, dtype=np.uint8))
        return np.concatenate([np.array(order, dtype=np.int64), rng.permutation(rest)]), span_w


def take_words(
    order: np.ndarray, lengths_w: np.ndarray, share: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Takes words in `order` until they have `share` tokens on average, and `size` at most.

    Args:
      order: words, each at most once.
      lengths_w: tokens of each word, at most `size`.
      share: tokens wanted.
      size: tokens that there is room for, at least `share`.
      rng: decides on the word that crosses the share.

    Returns:
      The words taken, at least one.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> take_words(np.array([2, 0, 1]), np.array([1, 5, 2]), 3, 4, rng).tolist()
      [2, 0]
    """
    sums = np.cumsum(lengths_w[order])
    count = int(np.searchsorted(sums, share, side="right"))
    total = int(sums[count - 1]) if count else 0
    if total == share or count == order.size:
        return order[:count]
    taken: list[int] = []
    for word in order[count:].tolist():
        length = int(lengths_w[word])
        if total + length <= share:
            taken.append(word)
            total += length
        elif total + length <= size:
            if rng.random() * length < share - total:
                taken.append(word)
            break
        if total == share:
            break
    if not count and not taken:
        return order[:1]
    return np.append(order[:count], taken).astype(np.int64)


def span_length_cdf(mean: float) -> np.ndarray:
    """Returns the distribution function of the words of a span: 1, 2, ... up to a longest one.

    A geometric distribution cut off at the longest (10, or 2.5 times the mean if that is more),
    whose mean is `mean` after the cut: SpanBERT's (p = 0.2, at most 10) is a mean of 3.8.

    Args:
      mean: words, at least 1.

    Example:
      >>> cdf = span_length_cdf(3.8)
      >>> len(cdf), round(1 - float(cdf[1] - cdf[0]) / float(cdf[0]), 2)
      (10, 0.2)
    """
    longest = max(10, math.ceil(2.5 * mean))
    lengths = np.arange(1, longest + 1)

    def probabilities(ratio: float) -> np.ndarray:
        weights = ratio ** (lengths - 1.0)
        return weights / weights.sum()

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if (probabilities(middle) * lengths).sum() < mean:
            low = middle
        else:
            high = middle
    cdf = np.cumsum(probabilities(low))
    cdf[-1] = 1.0
    return cdf
