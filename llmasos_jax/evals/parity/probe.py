"""The ids that two models are compared on, and how far apart two arrays are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import GenerationError

# Of a long row, so many last tokens are scored: a row of scores is as wide as the vocabulary.
SCORED = 32
_LENGTH = 64
_PAST_WINDOW = 24
_MOST = 1024
_ONE_BATCH = 256


@dataclass(frozen=True)
class Probe:
    """One batch of ids.

    Attributes:
      tokens_bt: int32 [B, T]; padding holds 0.
      mask_bt: int32 [B, T], 1 for tokens; padding stands on the right.
      types_bt: int32 [B, T], the type of each token; None for type 0.
    """

    tokens_bt: np.ndarray
    mask_bt: np.ndarray
    types_bt: np.ndarray | None = None


def length_for(configs: Sequence[ModelConfig | None], tokens: int | None) -> int:
    """How many tokens the longest row has: past windows, relative distances, factors, if it may.

    Args:
      configs: of the models; None where one is not known.
      tokens: what the caller wants; None chooses, at most 1024.

    Raises:
      GenerationError: `tokens` is below 2, or more than a model takes.
    """
    known = [cfg for cfg in configs if cfg is not None]
    most = min((c.context_length for c in known), default=_MOST)
    if tokens is not None:
        if not 2 <= tokens <= most:
            raise GenerationError(f"tokens={tokens} is not possible; give 2 to {most}")
        return tokens
    windows = [w for cfg in known for w in cfg.attention_windows if w is not None]
    windows += [cfg.relative_max_distance for cfg in known if cfg.position == "relative"]
    windows += [
        cfg.rope_scaling.original_length or 0
        for cfg in known
        if cfg.rope_scaling.kind == "longrope"
    ]
    return max(2, min(most, _MOST, max([_LENGTH, *(w + _PAST_WINDOW for w in windows)])))


def make_probes(
    vocab_size: int,
    length: int,
    seed: int,
    avoid: Sequence[int] = (),
    also: Sequence[int] = (),
    token_types: int = 0,
) -> list[Probe]:
    """Random ids: a row of `length`, and rows of unequal length, padded on the right.

    Args:
      vocab_size: ids are drawn below this.
      length: of the long row.
      seed: of the draw.
      avoid: ids that are not drawn (padding, which some models take for no token).
      also: ids that must occur.
      token_types: of both models; above 1 there is one more probe, in which each of them occurs.
    """
    rng = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(vocab_size), np.asarray(avoid, np.int64))
    short = min(length, _LENGTH)
    lengths = (max(1, short // 2), max(1, short // 3), 1)
    # One batch compiles once; but short rows padded to a long one would be work for nothing.
    groups = [(length, *lengths)] if length <= _ONE_BATCH else [(length,), lengths]
    probes = []
    for group in groups:
        mask_bt = (np.arange(max(group))[None] < np.array(group)[:, None]).astype(np.int32)
        tokens_bt = rng.choice(allowed, mask_bt.shape).astype(np.int32)
        probes.append(Probe(tokens_bt * mask_bt, mask_bt))
    few = np.asarray(also[: length // 2], np.int32)
    probes[0].tokens_bt[0, : len(few)] = few
    if token_types > 1:  # of the shape of another probe: nothing more is compiled for its blocks
        last = probes[-1]
        types = np.arange(last.mask_bt.size, dtype=np.int32).reshape(last.mask_bt.shape)
        probes.append(Probe(last.tokens_bt, last.mask_bt, types % token_types * last.mask_bt))
    return probes


def distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray], probes: Sequence[Probe]) -> float:
    """The largest difference at a token, as a share of the largest number of `a`.

    Args:
      a: an array [B, T, ...] for each probe; the last T tokens where it is shorter.
      b: the same of the other model.
      probes: what they were computed on.

    Returns:
      0 where they are equal; infinite where one has what is no number, or widths differ.
    """
    largest, apart = 0.0, 0.0
    for x, y, probe in zip(a, b, probes, strict=True):
        if x.shape != y.shape:
            return float("inf")
        seen = probe.mask_bt[:, -x.shape[1] :] > 0
        largest = max(largest, float(np.abs(x[seen]).max()))
        apart = max(apart, float(np.abs(x[seen] - y[seen]).max()))
        if not np.isfinite([largest, apart]).all():
            return float("inf")
    return apart / largest if largest else (float("inf") if apart else 0.0)
