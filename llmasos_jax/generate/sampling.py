"""How the next token is drawn from logits: pure functions over a batch, options traced per row.

What may not come is put to -inf first of all. Then the order is that of transformers (5.23,
`GenerationMixin._get_logits_processor`): bias, repetition penalty, temperature, top-k, top-p (of
what top-k left), min-p, typical; presence and frequency penalties, which it has not, stand before
the temperature. Then one draw by the Gumbel-max trick, with noise that is a pure function of (seed,
sample index, position). Temperature 0 takes the largest logit after bias and penalties, the first
of equals.

One difference from transformers, only where logits tie exactly: a top-p border keeps all tokens of
one logit (transformers keeps those that its sort happens to put last), and so the result does not
depend on a sort's order.

An option costs passes over [B, V] only while some row asks for it, and a row that does not ask
keeps its bits beside one that does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.filters import keep_min_p, keep_top_k, keep_top_p, keep_typical
from llmasos_jax.generate.penalties import add_bias, mask_logits, penalise_counts, penalise_seen

MOST_BIASED = 300  # tokens that one text may bias, as at OpenAI: one shape serves all texts
NO_ID = np.iinfo(np.int32).max  # beyond every vocabulary


@dataclass(frozen=True)
class Sampling:
    """How one text is drawn. Checked when made.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k most likely tokens; None keeps all.
      top_p: keep the fewest most likely tokens whose probabilities reach p (Holtzman et al., 2020,
        arXiv 1904.09751); None keeps all.
      min_p: keep tokens at least p times as likely as the likeliest (Nguyen et al., 2024, arXiv
        2407.01082).
      repetition_penalty: divides positive and multiplies negative logits of tokens that stand in
        the prompt or in the text so far (Keskar et al., 2019, arXiv 1909.05858, section 4.1); 1
        does nothing.
      seed: of the noise, 0 to 2^32 - 1.
      index: which sample of a batch this is; the noise depends on it.
      typical_p: keep the most typical tokens whose probabilities reach p (Meister et al., 2022,
        arXiv 2202.00666); None keeps all.
      presence_penalty: subtracted from the logits of tokens that were drawn before in this text
        (not those of the prompt), -2 to 2; 0 does nothing.
      frequency_penalty: subtracted as many times as a token was drawn, -2 to 2.
      logit_bias: (id, bias) pairs, at most 300, each id once; a bias, -100 to 100, is added to the
        token's logit.

    Raises:
      GenerationError: an option out of range.

    Example:
      >>> Sampling(temperature=0.8, top_p=0.9).top_p
      0.9
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    index: int = 0
    typical_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        number = _require_number
        number(
            "temperature", self.temperature, "at least 0 (0 is greedy)", lambda x: 0 <= x < math.inf
        )
        number(
            "repetition_penalty",
            self.repetition_penalty,
            "above 0 (1 is off)",
            lambda x: 0 < x < math.inf,
        )
        if self.top_k is not None:
            require_whole("top_k", self.top_k, 1, "; None turns it off")
        for name in ("top_p", "typical_p"):
            if (value := getattr(self, name)) is not None:
                rule = "above 0 and at most 1 (None turns it off)"
                number(name, value, rule, lambda x: 0 < x <= 1)
        if self.min_p is not None:
            number(
                "min_p",
                self.min_p,
                "at least 0 and at most 1 (None turns it off)",
                lambda x: 0 <= x <= 1,
            )
        for name in ("presence_penalty", "frequency_penalty"):
            rule = "from -2 to 2 (0 is off)"
            number(name, getattr(self, name), rule, lambda x: -2 <= x <= 2)
        _require_bias(self.logit_bias)
        require_whole("seed", self.seed, 0, " and below 2**32")
        if self.seed >= 2**32:
            raise GenerationError(
                f"seed={self.seed} is too large; give a whole number from 0 to {2**32 - 1}"
            )

    def at_index(self, index: int) -> Sampling:
        """The same options for another sample of the batch."""
        return dataclasses.replace(self, index=index)

    def require_ids(self, num_ids: int) -> None:
        """Raises GenerationError if a bias is on a token that cannot be drawn.

        Args:
          num_ids: tokens that can be drawn are 0 to num_ids - 1.
        """
        for token, _ in self.logit_bias:
            if token >= num_ids:
                raise GenerationError(
                    f"logit_bias has the id {token}, which cannot be drawn; give ids from 0 to "
                    f"{num_ids - 1}"
                )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRows:
    """The options of a batch as arrays, one row per text; what is off changes nothing.

    Attributes:
      key_b: typed random keys [B], of (seed, sample index).
      temperature_b, top_p_b, min_p_b, penalty_b, typical_p_b, presence_b, frequency_b: float32 [B].
      top_k_b: int32 [B].
      bias_ids_bm: int32 [B, MOST_BIASED], tokens with a bias; unused ones are `NO_ID`.
      bias_bm: float32 [B, MOST_BIASED], added to their logits; 0 where unused.
    """

    key_b: jax.Array
    temperature_b: jax.Array
    top_k_b: jax.Array
    top_p_b: jax.Array
    min_p_b: jax.Array
    penalty_b: jax.Array
    typical_p_b: jax.Array
    presence_b: jax.Array
    frequency_b: jax.Array
    bias_ids_bm: jax.Array
    bias_bm: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """What stands in a batch of texts so far.

    Attributes:
      prompt_bv: bool [B, V], tokens in the prompt.
      count_bv: int32 [B, V], how often each token was drawn.
    """

    prompt_bv: jax.Array
    count_bv: jax.Array

    def add(self, token_b: jax.Array) -> Seen:
        """Counts one drawn token per row, int32 [B]; one outside the vocabulary is not counted."""
        row_b = jnp.arange(token_b.shape[0], dtype=jnp.int32)
        return Seen(self.prompt_bv, self.count_bv.at[row_b, token_b].add(1, mode="drop"))


def seen_in(prompt_bp: jax.Array, num_ids: int) -> Seen:
    """What is seen before the first draw.

    Args:
      prompt_bp: int32 [B, P]; what is no token of the prompt has an id of at least num_ids.
      num_ids: V.
    """
    b = prompt_bp.shape[0]
    row_b1 = jnp.arange(b, dtype=jnp.int32)[:, None]
    prompt_bv = jnp.zeros((b, num_ids), bool).at[row_b1, prompt_bp].set(True, mode="drop")
    return Seen(prompt_bv, jnp.zeros((b, num_ids), jnp.int32))


def sampling_rows(samplings: Sequence[Sampling]) -> SamplingRows:
    """Puts the options of several texts into arrays."""
    everything = np.iinfo(np.int32).max
    bias_ids_bm = np.full((len(samplings), MOST_BIASED), NO_ID, np.int32)
    bias_bm = np.zeros((len(samplings), MOST_BIASED), np.float32)
    for row, s in enumerate(samplings):
        for column, (token, bias) in enumerate(s.logit_bias):
            bias_ids_bm[row, column], bias_bm[row, column] = token, bias
    seeds = np.array([s.seed for s in samplings], np.uint32)
    indices = np.array([s.index for s in samplings], np.uint32)

    def floats(values: list[float]) -> jax.Array:
        return jnp.asarray(np.array(values, np.float32))

    return SamplingRows(
        key_b=_row_keys(seeds, indices),
        temperature_b=floats([s.temperature for s in samplings]),
        top_k_b=jnp.asarray(
            np.array([min(s.top_k or everything, everything) for s in samplings], np.int32)
        ),
        top_p_b=floats([1.0 if s.top_p is None else s.top_p for s in samplings]),
        min_p_b=floats([s.min_p or 0.0 for s in samplings]),
        penalty_b=floats([s.repetition_penalty for s in samplings]),
        typical_p_b=floats([1.0 if s.typical_p is None else s.typical_p for s in samplings]),
        presence_b=floats([s.presence_penalty for s in samplings]),
        frequency_b=floats([s.frequency_penalty for s in samplings]),
        bias_ids_bm=jnp.asarray(bias_ids_bm),
        bias_bm=jnp.asarray(bias_bm),
    )


def rows_with(rows: SamplingRows, row: jax.Array | int, one: SamplingRows) -> SamplingRows:
    """Puts the options of one text into a row of a batch; the number of the row may be traced.

    Args:
      rows: of the batch.
      row: int32 scalar, from 0 to B - 1.
      one: `sampling_rows` of one text.
    """
    return jax.tree.map(lambda all_b, own_1: all_b.at[row].set(own_1[0]), rows, one)


@jax.jit
def _row_keys(seed_b: jax.Array, index_b: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(
        seed_b, index_b
    )


def draw(
    logits_bv: jax.Array,
    seen: Seen,
    position_b: jax.Array,
    rows: SamplingRows,
    allowed_bw: jax.Array | None = None,
) -> jax.Array:
    """Draws one token per row.

    Args:
      logits_bv: float32 [B, V].
      seen: what stands in the texts so far.
      position_b: int32 [B], where in its text, prompt included, the token will stand.
      rows: the options.
      allowed_bw: uint32 [B, V / 32 rounded up], what may come, greedy or not: bit i of word w is
        token 32 w + i. None allows everything.

    Returns:
      int32 [B]; V where a row's logits are not numbers, or nothing may come.
    """
    if allowed_bw is not None:
        logits_bv = mask_logits(logits_bv, allowed_bw)
    penalised_bv = change_logits(logits_bv, seen, rows)
    sampled_b = rows.temperature_b > 0

    def sample() -> jax.Array:
        kept_bv = filter_logits(penalised_bv, rows)
        noise_bv = gumbel_noise(rows.key_b, position_b, logits_bv.shape[1])
        # A row at temperature 0 takes no noise: it is greedy whatever its neighbours ask for.
        return argmax(jnp.where(sampled_b[:, None], kept_bv + noise_bv, penalised_bv))

    return lax.cond(jnp.any(sampled_b), sample, lambda: argmax(penalised_bv))


def argmax(x_bv: jax.Array) -> jax.Array:
    """The index of each row's first maximum, int32 [B]; V where a row has a NaN, or -inf alone.

    Two plain reductions: XLA on CPU runs them four times as fast as its own pairwise argmax.
    """
    v = x_bv.shape[1]
    index_bv = lax.broadcasted_iota(jnp.int32, x_bv.shape, 1)
    most_b = jnp.max(x_bv, axis=1)
    index_b = jnp.min(jnp.where(x_bv == most_b[:, None], index_bv, v), axis=1)
    return jnp.where(most_b > -jnp.inf, index_b, v)


def gumbel_noise(key_b: jax.Array, position_b: jax.Array, num: int) -> jax.Array:
    """Gumbel noise, float32 [B, num]; a row depends on its key and position alone."""
    keys = jax.vmap(jax.random.fold_in)(key_b, position_b)
    return jax.vmap(lambda key: jax.random.gumbel(key, (num,), jnp.float32))(keys)


def log_probs(
    logits_bv: jax.Array, token_b: jax.Array, num_top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Natural log-probabilities under the model, before any option.

    Args:
      logits_bv: float32 [B, V].
      token_b: int32 [B], a token of each row; its probability is NaN outside the vocabulary.
      num_top: K, how many of the likeliest to tell, at most V.

    Returns:
      The token's, float32 [B]; ids of the likeliest tokens, int32 [B, K], the likeliest first and
      of equals the lowest id; theirs, float32 [B, K]. In nats.
    """
    log_p_bv = jax.nn.log_softmax(logits_bv.astype(jnp.float32), axis=1)
    logprob_b = jnp.take_along_axis(log_p_bv, token_b[:, None], axis=1, mode="fill")[:, 0]
    # By logits: two of them can have one log-probability, rounded. -0.0 equals 0.0.
    _, top_bk = lax.top_k(jnp.where(logits_bv == 0, 0.0, logits_bv), num_top)
    return logprob_b, top_bk, jnp.take_along_axis(log_p_bv, top_bk, axis=1)


def change_logits(logits_bv: jax.Array, seen: Seen, rows: SamplingRows) -> jax.Array:
    """Logits after bias and penalties, float32 [B, V]."""
    is_counted_b = (rows.presence_b != 0) | (rows.frequency_b != 0)
    return _changed(
        logits_bv,
        (rows.bias_bm != 0, lambda x: add_bias(x, rows.bias_ids_bm, rows.bias_bm)),
        (
            rows.penalty_b != 1,
            lambda x: penalise_seen(x, seen.prompt_bv | (seen.count_bv > 0), rows.penalty_b),
        ),
        (
            is_counted_b,
            lambda x: penalise_counts(x, seen.count_bv, rows.presence_b, rows.frequency_b),
        ),
    )


def filter_logits(logits_bv: jax.Array, rows: SamplingRows) -> jax.Array:
    """Logits after temperature, top-k, top-p, min-p and typical, float32 [B, V]; -inf never comes.

    They are shifted so that each row's largest is 0 (which no probability notices): then no
    temperature overflows.
    """
    shifted_bv = logits_bv - jnp.max(logits_bv, axis=1, keepdims=True)
    return _changed(
        shifted_bv / jnp.where(rows.temperature_b > 0, rows.temperature_b, 1.0)[:, None],
        (rows.top_k_b < logits_bv.shape[1], lambda x: keep_top_k(x, rows.top_k_b)),
        (rows.top_p_b < 1, lambda x: keep_top_p(x, rows.top_p_b)),
        (rows.min_p_b > 0, lambda x: keep_min_p(x, rows.min_p_b)),
        (rows.typical_p_b < 1, lambda x: keep_typical(x, rows.typical_p_b)),
    )


def _changed(x_bv: jax.Array, *steps: tuple[jax.Array, Callable]) -> jax.Array:
    """Takes the steps, each some passes over [B, V], that any row asks for, in order."""
    asked = [jnp.any(is_asked) for is_asked, _ in steps]

    def take(x_bv: jax.Array) -> jax.Array:
        for is_asked, (_, change) in zip(asked, steps, strict=True):
            x_bv = lax.cond(is_asked, change, lambda x: x, x_bv)
        return x_bv

    # One branch around all of them: a plain batch passes one, not each.
    return lax.cond(jnp.any(jnp.stack(asked)), take, lambda x: x, x_bv)


def _require_number(name: str, value: object, rule: str, holds: Callable[[float], bool]) -> None:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    # As the device will hold it: 1e-50 is above 0, but not in float32.
    with np.errstate(over="ignore", under="ignore"):
        held = float(np.float32(value)) if is_number else math.nan  # pyright: ignore
    if not holds(held) or 0 < abs(held) < np.finfo(np.float32).tiny:
        raise GenerationError(f"{name}={value!r} is not possible; give a number {rule}")


def _require_bias(pairs: Any) -> None:
    is_pairs = isinstance(pairs, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in pairs
    )
    if not is_pairs:
        raise GenerationError(
            f"logit_bias={pairs!r:.80} is not possible; give a tuple of (id, bias) pairs"
        )
    if len(pairs) > MOST_BIASED:
        raise GenerationError(
            f"logit_bias has {len(pairs)} tokens; give at most {MOST_BIASED} of them"
        )
    ids = set()
    for token, bias in pairs:
        require_whole("an id of logit_bias", token, 0)
        if token in ids or token >= NO_ID:
            fault = "twice" if token in ids else "which is no token"
            raise GenerationError(f"logit_bias has the id {token}, {fault}; give each token once")
        ids.add(token)
        rule = "from -100 to 100"
        _require_number(f"logit_bias[{token}]", bias, rule, lambda x: -100 <= x <= 100)


def require_whole(name: str, value: object, least: int, more: str = "") -> None:
    """Raises GenerationError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise GenerationError(
            f"{name}={value!r} is not possible; give a whole number of at least {least}{more}"
        )
