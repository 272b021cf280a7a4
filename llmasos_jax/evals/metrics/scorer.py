"""Log-likelihoods of tokens: many at once, what continuations share computed once.

A question is a context and its continuations, of which each is scored after it. Contexts stand in
rows beside each other, each with its continuations as branches behind it (`rows.py`): a token of a
continuation sees the context and its own continuation, so that a context is read once, and one
program serves questions of all lengths. Only the states that predict what is asked for reach the
output layer, a few hundred at a time; continuations of one token read one state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.rows import Layout, Part, batches, laid_out, packed, parts_of
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Weights
from llmasos_jax.models.transformer import Transformer
from llmasos_jax.nn.kernels import ATTENTIONS

# Tokens of a batch: enough to keep the device's products busy, few enough for its memory; and those
# of a row, in which scores of all pairs are made: wide enough that little stays empty.
TOKENS_AT_ONCE = {"cpu": 1024}
TOKENS_ELSEWHERE = 16384
ROW = 512
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
        self._width = ROW
        self._cfg = cfg
        self._run = jax.jit(partial(_score_rows, weights), static_argnames="has_branches")

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
        parts: list[Part] = []
        for index, question in enumerate(questions):
            self._check(index, question)
            parts += self._parts(index, question)
        # With a prefix, branches also say which tokens are its.
        has_branches = self._cfg.prefix_lm or any(part.branches > 1 for part in parts)
        found: dict[int, dict[int, Scored]] = {}
        for rows, num, width in batches(
            packed(parts, self._width), self._width, self._tokens_at_once
        ):
            layout = laid_out(rows, num, width)
            for (part, place, _), scored in zip(
                layout.owners, self._scored(layout, has_branches), strict=True
            ):
                index = part.question
                found.setdefault(index, {})[place] = scored
                if len(found[index]) == len(questions[index].continuations):
                    done = found.pop(index)
                    yield index, [done[place] for place in range(len(done))]

    def _parts(self, index: int, question: Question) -> Iterator[Part]:
        cfg, n = self._cfg, len(question.context)
        group_of = lambda place: 0
        if cfg.attention not in ATTENTIONS:
            # A function of somebody's own need not know branches.
            group_of = lambda place: place
        elif cfg.rope_scaling.kind == "longrope":
            # The angles of the context, too, are those of the whole text's length.
            original = cfg.rope_scaling.original_length or 0
            group_of = lambda place: n + len(question.continuations[place]) - 1 > original
        yield from parts_of(index, question.context, question.continuations, self._width, group_of)

    def _scored(self, layout: Layout, has_branches: bool) -> Iterator[Scored]:
        """Of each of the layout's owners."""
        arrays = (layout.tokens, layout.segments, layout.positions, layout.branches)
        pairs = (layout.num_states, layout.states_s, layout.slots_p, layout.targets_p)
        logp_p, is_best_p = map(
            np.asarray, self._run(self._weights.params, arrays, pairs, has_branches=has_branches)
        )
        start = 0
        for _, _, num in layout.owners:
            yield _scored(logp_p[start : start + num], is_best_p[start : start + num])
            start += num

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
    arrays: tuple[jax.Array, ...],
    pairs: tuple[jax.Array, ...],
    *,
    has_branches: bool,
) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each pair's token [P], and whether it is the likeliest one."""
    model = weights.definition.bind(params)
    tokens_bt, segments_bt, positions_bt, branches_bt = arrays
    x_btd = model.hidden(
        tokens_bt,
        positions_bt=positions_bt,
        segment_ids_bt=segments_bt,
        prefix_bt=branches_bt == 0 if weights.definition.cfg.prefix_lm else None,
        branches_bt=branches_bt if has_branches else None,
        runtime=weights.runtime,
    ).x_btd
    return _of_pairs(weights, model, x_btd.reshape(-1, x_btd.shape[-1]), *pairs)


def _of_pairs(
    weights: Weights,
    model: Transformer,
    x_rd: jax.Array,
    num_states: jax.Array,
    states_s: jax.Array,
    slots_p: jax.Array,
    targets_p: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`_score_rows` from all states [R, D]; some states at a time, and none that is not needed."""
    num = min(_STATES_AT_ONCE, states_s.shape[0])
    padded_s = jnp.pad(states_s, (0, num))  # a slice past the end would be moved

    def some(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_sd = x_rd[lax.dynamic_slice_in_dim(padded_s, i * num, num)]
        logits_sv = model.logits(x_sd[None], weights.runtime)[0]
        best_s, total_s = jnp.argmax(logits_sv, axis=1), jax.nn.logsumexp(logits_sv, axis=1)
        at_p = slots_p - i * num
        is_here_p = (at_p >= 0) & (at_p < num)
        at_p = jnp.clip(at_p, 0, num - 1)
        logp_p, is_best_p = logits_sv[at_p, targets_p] - total_s[at_p], best_s[at_p] == targets_p
        return jnp.where(is_here_p, logp_p, found[0]), jnp.where(is_here_p, is_best_p, found[1])

    none = (jnp.zeros(targets_p.shape, jnp.float32), jnp.zeros(targets_p.shape, bool))
    return lax.fori_loop(0, (num_states + num - 1) // num, some, none)
