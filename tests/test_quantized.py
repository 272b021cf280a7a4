"""Products of factors in eight bits, one by one: how near they are, and which are so."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.nn.quantized import Rounding, dot_rounded, encode
from llmasos_jax.nn.runtime import dot_narrow, training_runtime

SPECS = {
    "btd,df->btf": ((2, 24, 64), (64, 48)),
    "btd,dnh->btnh": ((2, 24, 64), (64, 2, 16)),
    "btnh,nhd->btd": ((2, 24, 2, 16), (2, 16, 64)),
}


def value_and_gradients(product, spec, key):
    x_key, w_key, g_key = jax.random.split(key, 3)
    x, w = (jax.random.normal(k, s) for k, s in zip((x_key, w_key), SPECS[spec], strict=True))

    @jax.jit
    def compute(x, w):
        y, pull = jax.vjp(lambda x, w: product(spec, x, w, out_dtype=jnp.float32), x, w)
        return y, *pull(jax.random.normal(g_key, y.shape))

    return compute(x, w)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.015), ("fp8", 0.07)])
def test_rounded_products_are_near_and_the_same_on_every_device(spec, kind, error, key):
    exact = value_and_gradients(dot_narrow, spec, key)
    native, carried = (
        value_and_gradients(functools.partial(dot_rounded, Rounding(kind, is_native)), spec, key)
        for is_native in (True, False)
    )
    for a, b, c in zip(native, carried, exact, strict=True):
        assert 1e-3 < np.linalg.norm(a - c) / np.linalg.norm(c) < error
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_an_outlier_spoils_its_own_row_alone(key):
    x = jax.random.normal(key, (4, 64)).at[0, 0].set(1e4)
    w = jax.random.normal(key, (64, 8))
    y = dot_rounded(Rounding("int8"), "td,df->tf", x, w, out_dtype=jnp.float32)
    error = np.linalg.norm(y - x @ w, axis=1) / np.linalg.norm(x @ w, axis=1)
    assert np.all(error[1:] < 0.02)
    codes, scale = encode(x, (1,), jnp.int8)
    assert codes[0, 0] == 127 and scale.shape == (4, 1)


@pytest.mark.parity
def test_as_near_as_qwix(key):
    qwix = pytest.importorskip("qwix", reason="needs the extra `parity`")
    x, w = jax.random.normal(key, (32, 64)), jax.random.normal(jax.random.key(1), (64, 32))
    q = functools.partial(qwix.quantize, qtype=jnp.int8)
    theirs = qwix.dot_general(
        q(x, channelwise_axes=[0]), q(w, channelwise_axes=[1]), (((1,), (0,)), ((), ()))
    )
    ours = dot_rounded(Rounding("int8"), "td,df->tf", x, w, out_dtype=jnp.float32)
    error = lambda y: np.linalg.norm(y - np.asarray(x) @ np.asarray(w))
    assert 0 < error(ours) < 1.05 * error(theirs)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_which_products_are_rounded(kind):
    runtime = training_runtime(PrecisionConfig("bfloat16", quantize=kind), "tpu")
    x, w = jnp.ones((1, 2, 4), jnp.bfloat16), jnp.ones((4, 3))

    def factors(**told):
        jaxpr = jax.make_jaxpr(lambda x, w: runtime.dot("btd,df->btf", x, w, **told))(x, w)
        return "i8[" in str(jaxpr) or "f8_e4m3fn[" in str(jaxpr)

    assert factors() and not factors(out_dtype=jnp.float32) and not factors(dtype=jnp.float32)


def test_a_gpu_gets_products_of_codes():
    runtime = training_runtime(PrecisionConfig("bfloat16", quantize="fp8"), "gpu")

    def loss(x, w):
        return jnp.sum(runtime.dot("btd,df->btf", x, w).astype(jnp.float32))

    x, w = jnp.ones((1, 16, 32), jnp.bfloat16), jnp.ones((32, 16))
    compute = jax.jit(jax.value_and_grad(loss, (0, 1)))
    lowered = compute.trace(x, w).lower(lowering_platforms=("cuda",))
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    factors = [sorted(re.findall(r"xf8(\w+)>", line)) for line in products]
    assert sorted(factors) == [["E4M3FN"] * 2, ["E4M3FN", "E5M2"], ["E4M3FN", "E5M2"]]
