"""How the next token is drawn from logits: pure functions over a batch, options traced per row.

The order is that of transformers (5.23, `GenerationMixin._get_logits_processor`): repetition
penalty, temperature, top-k, top-p (of what top-k left), min-p. Then one draw by the Gumbel-max
trick, with noise that is a pure function of (seed, sample index, position). Temperature 0 takes the
largest penalised logit, the first of equals.

One difference from transformers, only where logits tie exactly: a top-p border keeps all tokens of
one logit (transformers keeps those that its sort happens to put last), and so the result does not
depend on a sort's order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_jax.errors import GenerationError


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
        if self.top_p is not None:
            number(
                "top_p",
                self.top_p,
                "above 0 and at most 1 (None turns it off)",
                lambda x: 0 < x <= 1,
            )
        if self.min_p is not None:
            number(
                "min_p",
                self.min_p,
                "at least 0 and at most 1 (None turns it off)",
                lambda x: 0 <= x <= 1,
            )
        require_whole("seed", self.seed, 0, " and below 2**32")
        if self.seed >= 2**32:
            raise GenerationError(
                f"seed={self.seed} is too large; give a whole number from 0 to {2**32 - 1}"
            )

    def at_index(self, index: int) -> Sampling:
        """The same options for another sample of the batch."""
        return dataclasses.replace(self, index=index)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRows:
    """The options of a batch as arrays, one row per text; what is off changes nothing.

    Attributes:
      key_b: typed random keys [B], of (seed, sample index).
      temperature_b, top_p_b, min_p_b, penalty_b: float32 [B].
      top_k_b: int32 [B].
    """

    key_b: jax.Array
    temperature_b: jax.Array
    top_k_b: jax.Array
    top_p_b: jax.Array
    min_p_b: jax.Array
    penalty_b: jax.Array


def sampling_rows(samplings: Sequence[Sampling]) -> SamplingRows:
    """Puts the options of several texts into arrays."""
    everything = np.iinfo(np.int32).max
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
    )


@jax.jit
def _row_keys(seed_b: jax.Array, index_b: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(
        seed_b, index_b
    )


def draw(
    logits_bv: jax.Array, seen_bv: jax.Array, position_b: jax.Array, rows: SamplingRows
) -> jax.Array:
    """Draws one token per row.

    Args:
      logits_bv: float32 [B, V].
      seen_bv: bool [B, V], tokens in the prompt or in the text so far.
      position_b: int32 [B], where in its text, prompt included, the token will stand.
      rows: the options.

    Returns:
      int32 [B]; V where a row's logits are not numbers.
    """
    penalised_bv = lax.cond(
        jnp.any(rows.penalty_b != 1.0),
        lambda: penalise_seen(logits_bv, seen_bv, rows.penalty_b),
        lambda: logits_bv,
    )
    sampled_b = rows.temperature_b > 0

    def sample() -> jax.Array:
        kept_bv = filter_logits(penalised_bv, rows)
        noise_bv = gumbel_noise(rows.key_b, position_b, logits_bv.shape[1])
        # A row at temperature 0 takes no noise: it is greedy whatever its neighbours ask for.
        return argmax(jnp.where(sampled_b[:, None], kept_bv + noise_bv, penalised_bv))

    return lax.cond(jnp.any(sampled_b), sample, lambda: argmax(penalised_bv))


def argmax(x_bv: jax.Array) -> jax.Array:
    """The index of each row's first maximum, int32 [B]; V where a row has a NaN.

    Two plain reductions: XLA on CPU runs them four times as fast as its own pairwise argmax.
    """
    v = x_bv.shape[1]
    index_bv = lax.broadcasted_iota(jnp.int32, x_bv.shape, 1)
    return jnp.min(jnp.where(x_bv == jnp.max(x_bv, axis=1, keepdims=True), index_bv, v), axis=1)


def gumbel_noise(key_b: jax.Array, position_b: jax.Array, num: int) -> jax.Array:
    """Gumbel noise, float32 [B, num]; a row depends on its key and position alone."""
    keys = jax.vmap(jax.random.fold_in)(key_b, position_b)
    return jax.vmap(lambda key: jax.random.gumbel(key, (num,), jnp.float32))(keys)


def penalise_seen(logits_bv: jax.Array, seen_bv: jax.Array, penalty_b: jax.Array) -> jax.Array:
    """Divides positive and multiplies negative logits of seen tokens by the penalty."""
    penalty = penalty_b[:, None]
    return jnp.where(
        seen_bv, jnp.where(logits_bv > 0, logits_bv / penalty, logits_bv * penalty), logits_bv
    )


def filter_logits(logits_bv: jax.Array, rows: SamplingRows) -> jax.Array:
    """Logits after temperature, top-k, top-p and min-p, float32 [B, V]; -inf is never drawn.

    They are shifted so that each row's largest is 0 (which no probability notices): then no
    temperature overflows.
    """
    shifted_bv = logits_bv - jnp.max(logits_bv, axis=1, keepdims=True)
    x_bv = shifted_bv / jnp.where(rows.temperature_b > 0, rows.temperature_b, 1.0)[:, None]
    # Each filter costs passes over [B, V], so it runs only if some row asks for it.
    wants_k = jnp.any(rows.top_k_b < x_bv.shape[1])
    x_bv = lax.cond(wants_k, lambda x: keep_top_k(x, rows.top_k_b), lambda x: x, x_bv)
    x_bv = lax.cond(
        jnp.any(rows.top_p_b < 1), lambda x: keep_top_p(x, rows.top_p_b), lambda x: x, x_bv
    )
    return lax.cond(
        jnp.any(rows.min_p_b > 0), lambda x: keep_min_p(x, rows.min_p_b), lambda x: x, x_bv
    )


def keep_top_k(x_bv: jax.Array, top_k_b: jax.Array) -> jax.Array:
    """Puts -inf wherever a logit is below its row's k-th largest; equals of the k-th stay."""
    order_bv = _ordered_bits(x_bv)
    border_b = _largest_that(
        lambda t_b: jnp.sum(order_bv >= t_b[:, None], axis=1) >= top_k_b, x_bv.shape[0]
    )
    return jnp.where(order_bv >= border_b[:, None], x_bv, -jnp.inf)


def keep_top_p(x_bv: jax.Array, top_p_b: jax.Array) -> jax.Array:
    """Puts -inf wherever the strictly likelier tokens already hold probability p (1: nowhere)."""
    order_bv = _ordered_bits(x_bv)
    p_bv = jax.nn.softmax(x_bv, axis=1)

    def reaches_p(t_b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order_bv >= t_b[:, None], p_bv, 0.0), axis=1) >= top_p_b

    # The border is the largest logit at which the mass from the top down reaches p: that token is
    # the last one kept.
    border_b = _largest_that(reaches_p, x_bv.shape[0])
    kept_bv = (order_bv >= border_b[:, None]) | (top_p_b >= 1)[:, None]
    return jnp.where(kept_bv, x_bv, -jnp.inf)


def keep_min_p(x_bv: jax.Array, min_p_b: jax.Array) -> jax.Array:
    """Puts -inf wherever a token is less than p times as likely as the likeliest."""
    border = jnp.max(x_bv, axis=1, keepdims=True) + jnp.log(min_p_b)[:, None]
    return jnp.where(x_bv >= border, x_bv, -jnp.inf)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Maps float32 to uint32 so that the order stays."""
    x = jnp.where(x == 0, 0.0, x)  # -0.0 equals 0.0
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest_that(holds: Callable[[jax.Array], jax.Array], num_rows: int) -> jax.Array:
    """Each row's largest uint32 for which a monotone test holds, 0 if none; bit by bit, 32 tests.

    On CPU this is forty times as fast as sorting [8, 49152], and it gives the exact border.
    """

    def settle_bit(i: jax.Array, found_b: jax.Array) -> jax.Array:
        tried_b = found_b | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(holds(tried_b), tried_b, found_b)

    return lax.fori_loop(0, 32, settle_bit, jnp.zeros((num_rows,), jnp.uint32))


def _require_number(name: str, value: object, rule: str, holds: Callable[[float], bool]) -> None:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    # As the device will hold it: 1e-50 is above 0, but not in float32.
    with np.errstate(over="ignore", under="ignore"):
        held = float(np.float32(value)) if is_number else math.nan  # pyright: ignore
    if not holds(held) or 0 < held < np.finfo(np.float32).tiny:
        raise GenerationError(f"{name}={value!r} is not possible; give a number {rule}")


def require_whole(name: str, value: object, least: int, more: str = "") -> None:
    """Raises GenerationError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise GenerationError(
            f"{name}={value!r} is not possible; give a whole number of at least {least}{more}"
        )
