"""Moments of optimizers in few bits: how near they are, and which are of squares."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmasos_jax.errors import ConfigError
from llmasos_jax.train.moments import decode_rows, encode_rows, with_moments


@pytest.mark.parametrize("is_square", [True, False])
def test_eight_bits_are_near_and_right_on_average(is_square, key):
    x = jnp.exp(jax.random.uniform(key, (4, 50), minval=-12.0 * (1 + is_square), maxval=0.0))
    x = x if is_square else x * jnp.where(jnp.arange(50) % 2, 1.0, -1.0)[None]
    draws = [decode_rows(encode_rows(x, is_square=is_square, seed=s)) for s in range(200)]
    assert np.max(np.abs(draws[0] / x - 1)) < 0.13
    np.testing.assert_allclose(np.mean(draws, axis=0), x, rtol=0.03)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_the_second_moment_decays(kind):
    """By a thousandth each step: to the nearest it would stay where it is."""
    shapes = {"head": {"w": jax.ShapeDtypeStruct((8, 128), jnp.float32)}}
    adam = with_moments(optax.scale_by_adam(b2=0.999), kind, shapes, "adamw")
    first = {"head": {"w": jnp.ones((8, 128))}}
    none = jax.tree.map(jnp.zeros_like, first)
    _, state = adam.update(first, adam.init(first), first)
    state = jax.lax.fori_loop(0, 1000, lambda _, s: adam.update(none, s, first)[1], state)
    nu = state.inner.nu["head"]["w"]
    nu = decode_rows(nu) if kind == "int8" else nu.astype(jnp.float32)
    np.testing.assert_allclose(nu.mean(), 1e-3 * 0.999**1000, rtol=0.05)


class Velocity(NamedTuple):
    """A state of an optimizer from elsewhere."""

    nu: object


def test_squares_are_told_by_their_state_and_not_by_a_name():
    shapes = {"head": {"w": jax.ShapeDtypeStruct((8, 128), jnp.float32)}}
    theirs = optax.GradientTransformation(
        lambda params: (Velocity(jax.tree.map(jnp.zeros_like, params)),),
        lambda updates, state, params=None: (updates, state),
    )
    with pytest.raises(ConfigError, match=re.escape("keeps [0].nu['head']['w'], and squares are")):
        with_moments(theirs, "int8", shapes, "my.code:velocity")
    params = jax.tree.map(jnp.ones_like, shapes)
    (state,) = with_moments(theirs, "bfloat16", shapes, "my.code:velocity").init(params).inner
    assert state.nu["head"]["w"].dtype == jnp.bfloat16
    rms = with_moments(optax.scale_by_rms(), "int8", shapes, "rms").init(params).inner
    lion = with_moments(optax.scale_by_lion(), "int8", shapes, "lion").init(params).inner
    assert rms.nu["head"]["w"].codes.dtype == np.uint8
    assert lion.mu["head"]["w"].codes.dtype == np.int8
