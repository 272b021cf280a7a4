"""Forms that are there for the TPU compiler alone give what the plain ones give."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmasos_jax.parallel.manual import _rounded
from llmasos_jax.train.optim import norm_of_updates


def test_a_weight_rounded_before_its_cast_is_the_same_number():
    w = jax.random.normal(jax.random.key(0), (4096,)) * 10.0 ** jnp.linspace(-30, 30, 4096)
    w = w.at[:4].set(jnp.array([0.0, -0.0, jnp.inf, 3.4e38]))
    plain = np.asarray(w.astype(jnp.bfloat16)).view(np.uint16)
    found = np.asarray(_rounded(w).astype(jnp.bfloat16)).view(np.uint16)
    np.testing.assert_array_equal(found, plain)


def test_the_gradient_of_a_rounded_weight_is_not_rounded():
    factor = jnp.float32(1.0 + 2.0**-20)
    assert jax.grad(lambda w: _rounded(w) * factor)(jnp.float32(3.0)) == factor


def test_the_norm_beside_new_weights_is_the_updates():
    updates = {"a": jnp.arange(6.0), "b": jnp.full((2, 3), -0.5)}
    params = {"a": jnp.ones(6, jnp.bfloat16), "b": jnp.full((2, 3), jnp.inf)}
    found = norm_of_updates(updates, params, "tpu")
    assert found == optax.tree.norm(updates) == norm_of_updates(updates, params, "cpu")
    params["a"] = params["a"].at[2].set(jnp.nan)
    assert jnp.isnan(norm_of_updates(updates, params, "tpu"))
