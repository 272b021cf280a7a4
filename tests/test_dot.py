"""The product of activations and weights, and its gradients where the weights are narrow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.nn.runtime import Runtime, dot, dot_narrow, training_runtime
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.rules import training_rules

SPECS = {
    "btd,df->btf": ((2, 5, 16), (16, 8)),
    "btd,dnh->btnh": ((2, 5, 16), (16, 2, 4)),
    "btnh,nhd->btd": ((2, 5, 2, 4), (2, 4, 16)),
    "btd,vd->btv": ((2, 5, 16), (24, 16)),
    "bd,do->bo": ((3, 16), (16, 2)),
}


def gradients(product, spec: str, x: jax.Array, w: jax.Array, g: jax.Array) -> tuple:
    """Of sum(product * g) by activations and by weights that a product reads in bfloat16."""

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        y = product(spec, x, w.astype(jnp.bfloat16), out_dtype=jnp.float32)
        return jnp.sum(y * g)

    return jax.grad(loss, argnums=(0, 1))(x, w)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_products_of_rounded_factors(spec: str, key: jax.Array) -> None:
    x_key, w_key, g_key = jax.random.split(key, 3)
    x, w = (jax.random.normal(k, s) for k, s in zip((x_key, w_key), SPECS[spec], strict=True))
    y = dot(spec, x, w, out_dtype=jnp.float32)
    g = jax.random.normal(g_key, y.shape)
    rounded = [z.astype(jnp.bfloat16).astype(jnp.float32) for z in (x, w, g)]
    wanted_x, _ = gradients(dot, spec, x, rounded[1], rounded[2])
    _, wanted_w = gradients(dot, spec, rounded[0], w, rounded[2])
    found_x, found_w = gradients(dot_narrow, spec, x, w, g)
    assert found_x.dtype == found_w.dtype == jnp.float32
    # `dot` rounds the activations' gradient once more, to bfloat16: 2^-8 of it.
    np.testing.assert_allclose(found_x, wanted_x, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(found_w, wanted_w, rtol=2**-7, atol=1e-5)
    narrow = dot_narrow(spec, x, w.astype(jnp.bfloat16), out_dtype=jnp.float32)
    assert (narrow == dot(spec, x, w.astype(jnp.bfloat16), out_dtype=jnp.float32)).all()


def test_no_product_of_the_backward_pass_is_mixed() -> None:
    """One bfloat16 factor and one of float32 would run at float32's speed."""
    runtime = training_runtime(PrecisionConfig("bfloat16"), "cpu")

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(runtime.dot("btd,df->btf", x, w) ** 2)

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(jnp.ones((1, 2, 4)), jnp.ones((4, 3)))
    factors = [
        {str(v.aval.dtype) for v in eqn.invars}
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert factors == [{"bfloat16"}] * 3


@pytest.mark.parametrize("spec", SPECS)
def test_float32_gradients_are_the_plain_products(spec: str, key: jax.Array) -> None:
    x_key, w_key, g_key = jax.random.split(key, 3)
    x, w = (jax.random.normal(k, s) for k, s in zip((x_key, w_key), SPECS[spec], strict=True))
    g = jax.random.normal(g_key, dot(spec, x, w, out_dtype=jnp.float32).shape)

    def both(product, x: jax.Array, w: jax.Array) -> tuple:
        loss = lambda x, w: jnp.sum(product(spec, x, w, out_dtype=jnp.float32) * g)
        return jax.grad(loss, argnums=(0, 1))(x, w)

    for found, wanted in zip(both(dot_narrow, x, w), both(dot, x, w), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    # The weight's gradient sums over rows of two matrices, neither of them written anew.
    jaxpr = jax.make_jaxpr(lambda x, w: both(dot_narrow, x, w)[1])(x, w)
    products = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert products[-1].params["dimension_numbers"] == (((0,), (0,)), ((), ()))
    assert not any(eqn.primitive.name == "transpose" for eqn in jaxpr.eqns[-2:])


def test_gradients_of_narrow_weights_are_summed_before_they_are_rounded(key: jax.Array) -> None:
    """Of float32 products, over the parts of a loss."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    manual = Manual(mesh, training_rules(mesh))
    runtime = training_runtime(PrecisionConfig(weights="bfloat16"), "cpu", manual=manual)
    x_pbtd = jax.random.normal(key, (64, 1, 2, 8))

    def loss(w: jax.Array) -> jax.Array:
        whole = runtime.gather(w, (None, None), is_product=True)
        part = lambda total, x: (total + jnp.sum(runtime.dot("btd,df->btf", x, whole)), None)
        return jax.lax.scan(part, 0.0, x_pbtd)[0]

    found = jax.grad(loss)(jnp.ones((8, 4), jnp.bfloat16))
    wanted = jnp.broadcast_to(jnp.sum(x_pbtd, (0, 1, 2))[:, None], (8, 4))
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2.0**-8)


def test_which_product_where() -> None:
    for dtype in ("bfloat16", "float32"):
        assert training_runtime(PrecisionConfig(dtype), "cpu").product is dot_narrow
        for platform in ("tpu", "gpu"):
            assert training_runtime(PrecisionConfig(dtype), platform).product is dot
    assert Runtime().product is dot
