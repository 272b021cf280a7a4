"""Which tokens may be drawn, by their probability: top-k, top-p, min-p, typical.

Each filter takes logits and one number per row, and puts -inf where nothing may be drawn. A row
whose number says "all" keeps its bits. Tokens of one logit stay or go together, so no result
depends on a sort's order.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def keep_top_k(x_bv: jax.Array, top_k_b: jax.Array) -> jax.Array:
    """Puts -inf wherever a logit is below its row's k-th largest; equals of the k-th stay."""
    order_bv = _ordered_bits(x_bv)
    border_b = _largest_that(
        lambda t_b: jnp.sum(order_bv >= t_b[:, None], axis=1) >= top_k_b, x_bv.shape[0]
    )
    return jnp.where(order_bv >= border_b[:, None], x_bv, -jnp.inf)


def keep_top_p(x_bv: jax.Array, top_p_b: jax.Array) -> jax.Array:
    """Puts -inf wherever the strictly likelier tokens already hold probability p (1: nowhere)."""
    return _keep_mass(x_bv, _ordered_bits(x_bv), top_p_b)


def keep_min_p(x_bv: jax.Array, min_p_b: jax.Array) -> jax.Array:
    """Puts -inf wherever a token is less than p times as likely as the likeliest."""
    border = jnp.max(x_bv, axis=1, keepdims=True) + jnp.log(min_p_b)[:, None]
    return jnp.where(x_bv >= border, x_bv, -jnp.inf)


def keep_typical(x_bv: jax.Array, typical_p_b: jax.Array) -> jax.Array:
    """Puts -inf wherever the strictly more typical tokens already hold probability p (1: nowhere).

    A token is the more typical, the closer its information -log p is to the entropy, which is what
    a token of this distribution tells on average (Meister et al., 2022, arXiv 2202.00666, eq. 10).
    The likeliest token can be among those that go.
    """
    log_p_bv = jax.nn.log_softmax(x_bv, axis=1)
    p_bv = jnp.exp(log_p_bv)
    entropy_b1 = -jnp.sum(jnp.where(p_bv > 0, p_bv * log_p_bv, 0.0), axis=1, keepdims=True)
    return _keep_mass(x_bv, _ordered_bits(-jnp.abs(-log_p_bv - entropy_b1)), typical_p_b)


def _keep_mass(x_bv: jax.Array, order_bv: jax.Array, mass_b: jax.Array) -> jax.Array:
    """Keeps the tokens of the highest order whose probabilities reach a mass; 1 keeps all."""
    p_bv = jax.nn.softmax(x_bv, axis=1)

    def reaches_mass(t_b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order_bv >= t_b[:, None], p_bv, 0.0), axis=1) >= mass_b

    # The border is the highest order at which the mass from the top down reaches what is asked
    # for: that token is the last one kept.
    border_b = _largest_that(reaches_mass, x_bv.shape[0])
    kept_bv = (order_bv >= border_b[:, None]) | (mass_b >= 1)[:, None]
    return jnp.where(kept_bv, x_bv, -jnp.inf)


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
