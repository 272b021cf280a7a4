"""Log-likelihoods of tokens: many at once, what rows share computed once.

A question is a context and its continuations, of which each is scored after it:

    one continuation, or all of one token    context and it in one row, padded on the right; only
                                             the states that predict a continuation reach the head
    several, of more tokens                  the context alone, padded on the left, into a cache;
                                             then all continuations as a batch that reads it

Rows are sorted by length and padded to quarter steps, so that few programs serve all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_jax.errors import EvaluationError
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.session import power_of_two, quarter_steps
from llmasos_jax.generate.weights import Weights
from llmasos_jax.models.definition import empty_cache
from llmasos_jax.models.transformer import Transformer
from llmasos_jax.nn.cache import Cache, LayerCache

# Tokens of a batch: enough to keep the device's products busy, few enough for its memory.
TOKENS_AT_ONCE = {"cpu": 1024}
TOKENS_ELSEWHERE = 16384
MAX_ROWS = 64
_STATES_AT_ONCE = 256  # of which scores of the whole vocabulary are held


@dataclass(frozen=True)
class Question:
    """What is scored.

    Attributes:
      context: ids that are read and not scored, at least one.
      continuations: of each its ids, at least one.
    """

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scored:
    """What was found of a continuation.

    Attributes:
      tokens: of each token the natural logarithm of its probability, float64.
      is_greedy: whether each token is the likeliest one.
    """

    tokens: np.ndarray
    is_greedy: bool

    @property
    def total(self) -> float:
        """The log-likelihood in nats."""
        return float(self.tokens.sum())


class Scorer:
    """Scores continuations on one model.

    Args:
      weights: of a decoder.
      name: of the model, for messages.

    Raises:
      EvaluationError: the model predicts no next token of a text.
    """

    def __init__(self, weights: Weights, name: str = "model") -> None:
        cfg = weights.definition.cfg
        if not cfg.causal or cfg.encoder.num_layers or cfg.head is None:
            kind = "an encoder-decoder" if cfg.encoder.num_layers else "no decoder with a head"
            raise EvaluationError(
                f'model "{name}" is {kind}, and log-likelihoods of a text are for decoders; give '
                "one that writes what follows a text"
            )
        self.context_length, self._weights = cfg.context_length, weights
        platform = weights.placing.platform
        self._tokens_at_once = TOKENS_AT_ONCE.get(platform, TOKENS_ELSEWHERE)
        self._has_prefix = cfg.prefix_lm
        self._rows = jax.jit(partial(_score_rows, weights))
        self._prefix = jax.jit(partial(_read_contexts, weights), static_argnames="num_more")
        self._branches = jax.jit(partial(_score_branches, weights))

    def score(self, questions: Sequence[Question]) -> list[list[Scored]]:
        """What was found of each continuation of each question."""
        found: list[list[Scored]] = [[] for _ in questions]
        for index, scored in self.stream(questions):
            found[index] = scored
        return found

    def stream(self, questions: Sequence[Question]) -> Iterator[tuple[int, list[Scored]]]:
        """The same as they come, long ones first.

        Yields:
          The index of a question, and what was found of its continuations.

        Raises:
          EvaluationError: a question has no token where it needs one, or is longer than the
            context.
        """
        rows, branches = [], []
        for index, question in enumerate(questions):
            self._check(index, question)
            lengths = {len(c) for c in question.continuations}
            is_row = not self._has_prefix and (len(question.continuations) == 1 or lengths == {1})
            (rows if is_row else branches).append(index)
        yield from self._by_rows(questions, rows)
        yield from self._by_branches(questions, branches)

    def _by_rows(
        self, questions: Sequence[Question], indices: list[int]
    ) -> Iterator[tuple[int, list[Scored]]]:
        size_of = lambda i: len(questions[i].context) + _longest(questions[i]) - 1
        for batch, width, num_rows in self._batches(indices, size_of):
            some = [questions[i] for i in batch]
            num_places = _steps(max(map(_longest, some)))
            num_targets = power_of_two(max(len(q.continuations) for q in some))
            tokens_bt, mask_bt = (np.zeros((num_rows, width), np.int32) for _ in range(2))
            places_bm = np.zeros((num_rows, num_places), np.int32)
            targets_bmc = np.zeros((num_rows, num_places, num_targets), np.int32)
            mask_bt[:, 0] = 1  # a dummy row is one token long
            for row, question in enumerate(some):
                ids = [*question.context, *question.continuations[0][:-1]]
                longest = _longest(question)
                tokens_bt[row, : len(ids)] = ids
                mask_bt[row, : len(ids)] = 1
                places_bm[row, :longest] = np.arange(len(ids) - longest, len(ids))
                for c, continuation in enumerate(question.continuations):
                    targets_bmc[row, : len(continuation), c] = continuation
            args = (self._weights.params, tokens_bt, mask_bt, places_bm, targets_bmc)
            logp_bmc, best_bmc = map(np.asarray, self._rows(*args))
            for row, (index, question) in enumerate(zip(batch, some, strict=True)):
                yield (
                    index,
                    [
                        _scored(logp_bmc[row, : len(ids), c], best_bmc[row, : len(ids), c])
                        for c, ids in enumerate(question.continuations)
                    ],
                )

    def _by_branches(
        self, questions: Sequence[Question], indices: list[int]
    ) -> Iterator[tuple[int, list[Scored]]]:
        size_of = lambda i: len(questions[i].context)
        for batch, width, num_rows in self._batches(indices, size_of):
            some = [questions[i] for i in batch]
            tokens_bp = np.zeros((num_rows, width), np.int32)
            lengths_b = np.ones(num_rows, np.int32)
            for row, question in enumerate(some):
                lengths_b[row] = len(question.context)
                tokens_bp[row, width - lengths_b[row] :] = question.context
            longest = max(2, _steps(max(map(_longest, some))))
            params = self._weights.params
            last_bd, cache = self._prefix(params, tokens_bp, lengths_b, num_more=longest)
            pairs = [(row, ids) for row, q in enumerate(some) for ids in q.continuations]
            scored: list[Scored] = []
            at_once = min(_steps(len(pairs)), max(1, self._tokens_at_once // longest), MAX_ROWS)
            for first in range(0, len(pairs), at_once):
                some_pairs = pairs[first : first + at_once]
                rows_r = np.zeros(at_once, np.int32)
                targets_rt = np.zeros((at_once, longest), np.int32)
                for r, (row, ids) in enumerate(some_pairs):
                    rows_r[r], targets_rt[r, : len(ids)] = row, ids
                found = self._branches(params, cache, last_bd, rows_r, targets_rt)
                logp_rt, best_rt = map(np.asarray, found)
                for r, (_, ids) in enumerate(some_pairs):
                    scored.append(_scored(logp_rt[r, : len(ids)], best_rt[r, : len(ids)]))
            left = iter(scored)
            for index, question in zip(batch, some, strict=True):
                yield index, [next(left) for _ in question.continuations]

    def _batches(self, indices: list[int], size_of: Any) -> Iterator[tuple[list[int], int, int]]:
        """Questions of about one length, long ones first; the width and rows of their shape."""
        left = sorted(indices, key=size_of, reverse=True)
        while left:
            width = quarter_steps(size_of(left[0]))
            most = max(1, min(MAX_ROWS, self._tokens_at_once // width))
            same = sum(quarter_steps(size_of(i)) == width for i in left[:most])
            num_rows = min(most, _steps(same))
            batch = left[:num_rows]  # some that are shorter fill up what would be empty rows
            yield batch, width, num_rows
            left = left[num_rows:]

    def _check(self, index: int, question: Question) -> None:
        if (
            not question.continuations
            or not len(question.context)
            or not all(map(len, question.continuations))
        ):
            raise EvaluationError(
                f"question {index} has {len(question.context)} tokens of context and continuations "
                f"of {[len(c) for c in question.continuations]}; each needs at least one"
            )
        tokens = len(question.context) + _longest(question) - 1
        if tokens > self.context_length:
            raise EvaluationError(
                f"question {index} has {tokens} tokens; the model's context holds "
                f"{self.context_length}: shorten it"
            )


def _longest(question: Question) -> int:
    return max(map(len, question.continuations))


def _steps(num: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, then quarter steps."""
    if num > 24:
        return quarter_steps(num)
    whole = power_of_two(num)
    return whole * 3 // 4 if whole >= 4 and num <= whole * 3 // 4 else whole


def _scored(logp_t: np.ndarray, is_best_t: np.ndarray) -> Scored:
    if not np.isfinite(logp_t).all():
        raise EvaluationError(
            "the model's logits are not finite numbers; its weights are damaged, or dtype is too "
            'narrow for it (try dtype="float32")'
        )
    return Scored(logp_t.astype(np.float64), bool(is_best_t.all()))


def scorer_of(model: Model) -> Scorer:
    """The model's scorer, made once, so that what it compiled is kept."""
    found = model.__dict__.get("_scorer")
    if found is None:
        found = model.__dict__["_scorer"] = Scorer(model._weights, model.manifest.name)
    return found


def _score_rows(
    weights: Weights,
    params: Any,
    tokens_bt: jax.Array,
    mask_bt: jax.Array,
    places_bm: jax.Array,
    targets_bmc: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of C targets at each of M places of a row, and whether one is the best."""
    model = weights.definition.bind(params)
    positions_bt = jnp.maximum(jnp.cumsum(mask_bt, axis=1) - 1, 0)
    x_btd = model.hidden(
        tokens_bt, positions_bt=positions_bt, segment_ids_bt=mask_bt, runtime=weights.runtime
    ).x_btd
    x_bmd = jnp.take_along_axis(x_btd, places_bm[:, :, None], axis=1)
    b, m, c = targets_bmc.shape
    found = _of_states(weights, model, x_bmd.reshape(b * m, -1), targets_bmc.reshape(b * m, c))
    logp_bmc, best_bmc = (x.reshape(b, m, c) for x in found)
    return logp_bmc, best_bmc


def _read_contexts(
    weights: Weights, params: Any, tokens_bp: jax.Array, lengths_b: jax.Array, *, num_more: int
) -> tuple[jax.Array, Cache]:
    """The states of the contexts' last tokens [B, D], and a cache with room for as many more."""
    model, (b, p) = weights.definition.bind(params), tokens_bp.shape
    cache = empty_cache(weights.definition, b, p + num_more, weights.runtime.act_dtype)
    cache = dataclasses.replace(cache, start_b=p - lengths_b, length_b=lengths_b)
    hidden = model.hidden(tokens_bp, cache=cache, runtime=weights.runtime)
    if hidden.cache is None:
        raise ValueError("the model was given a cache and returned none")
    return hidden.x_btd[:, -1], hidden.cache


def _score_branches(
    weights: Weights,
    params: Any,
    cache: Cache,
    last_bd: jax.Array,
    rows_r: jax.Array,
    targets_rt: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of continuations [R, T], each after the context of its row."""
    model, num_rows = weights.definition.bind(params), last_bd.shape[0]

    def take(layer: LayerCache) -> LayerCache:
        arrays = [
            jnp.take(x.reshape(-1, num_rows, *x.shape[1:]), rows_r, axis=1)
            for x in (layer.k_rhs, layer.v_rsh)
        ]
        return LayerCache(*(x.reshape(-1, *x.shape[2:]) for x in arrays))

    layers = jax.tree.map(take, cache.layers, is_leaf=lambda x: isinstance(x, LayerCache))
    starts = {"start_b": cache.start_b[rows_r], "length_b": cache.length_b[rows_r]}
    branched = dataclasses.replace(cache, layers=layers, **starts)
    # The last token of a continuation predicts nothing that is asked for.
    x_rtd = model.hidden(targets_rt[:, :-1], cache=branched, runtime=weights.runtime).x_btd
    x_rtd = jnp.concatenate([last_bd[rows_r][:, None], x_rtd], axis=1)
    r, t, d = x_rtd.shape
    found = _of_states(weights, model, x_rtd.reshape(r * t, d), targets_rt.reshape(r * t, 1))
    logp_rt, best_rt = (x.reshape(r, t) for x in found)
    return logp_rt, best_rt


def _of_states(
    weights: Weights, model: Transformer, x_sd: jax.Array, targets_sc: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [S, C] of targets of states [S, D], and whether each is the likeliest."""
    num, (s, c) = _STATES_AT_ONCE, targets_sc.shape

    def some(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_sd, targets_sc = pair
        logits_sv = model.logits(x_sd[None], weights.runtime)[0]
        chosen_sc = jnp.take_along_axis(logits_sv, targets_sc, axis=1)
        best_s1 = jnp.argmax(logits_sv, axis=1, keepdims=True)
        total_s1 = jax.nn.logsumexp(logits_sv, axis=1, keepdims=True)
        return chosen_sc - total_s1, best_s1 == targets_sc

    if s <= num:
        return some((x_sd, targets_sc))
    padded = -(-s // num) * num
    x_nsd = jnp.pad(x_sd, ((0, padded - s), (0, 0))).reshape(-1, num, x_sd.shape[1])
    targets_nsc = jnp.pad(targets_sc, ((0, padded - s), (0, 0))).reshape(-1, num, c)
    found = lax.map(some, (x_nsd, targets_nsc))
    logp_sc, best_sc = (x.reshape(padded, c)[:s] for x in found)
    return logp_sc, best_sc
