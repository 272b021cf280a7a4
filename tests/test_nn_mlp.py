"""The MLP against formulas in float64 NumPy, and the parts around it: embedding, dropout."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.embed import Embed
from llmasos_jax.nn.mlp import MLP
from llmasos_jax.nn.runtime import Runtime

CFG = ModelConfig(16, 6, 1, 9, num_heads=1, ffn_dim=10)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


GATED = {"swiglu": silu, "geglu": exact_gelu, "geglu_tanh": tanh_gelu, "reglu": relu}
PLAIN = {"gelu": exact_gelu, "gelu_tanh": tanh_gelu, "relu": relu, "silu": silu}


def squared_relu(x: jax.Array) -> jax.Array:
    """An activation from outside the package (So et al., 2021)."""
    return jnp.square(jax.nn.relu(x))


def bound(cfg: ModelConfig, key: jax.Array) -> MLP:
    mlp = MLP(cfg)
    for i, name in enumerate(("gate", "up", "down", "gate_bias", "up_bias", "down_bias")):
        param = getattr(mlp, name)
        if param is not None:
            param[...] = jax.random.normal(jax.random.fold_in(key, i), param.shape)
    return mlp


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [*GATED, *PLAIN, "test_nn_mlp:squared_relu"])
def test_mlp_equals_its_formula(key, kind: str, bias: bool) -> None:
    mlp = bound(dataclasses.replace(CFG, mlp=kind, mlp_bias=bias), key)
    x = np.asarray(jax.random.normal(jax.random.fold_in(key, 9), (2, 3, 6)))

    def product(y: np.ndarray, name: str) -> np.ndarray:
        w, b = getattr(mlp, name), getattr(mlp, f"{name}_bias")
        assert (b is not None) == bias
        return y @ np.asarray(w[...], np.float64) + (0 if b is None else np.asarray(b[...]))

    act: Callable = {**GATED, **PLAIN}.get(kind, lambda x: relu(x) ** 2)
    if kind in GATED:
        expected = product(act(product(x, "gate")) * product(x, "up"), "down")
    else:
        assert mlp.gate is None
        expected = product(act(product(x, "up")), "down")
    np.testing.assert_allclose(mlp(jnp.asarray(x), Runtime()), expected, rtol=SIMPLE, atol=SIMPLE)


def test_an_unknown_mlp_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match='model.mlp="swiglo".*did you mean "swiglu"'):
        MLP(dataclasses.replace(CFG, mlp="swiglo"))


def test_embedding_scale_positions_and_norm(key) -> None:
    cfg = dataclasses.replace(
        CFG, embedding_scale=3.0, position="learned", embedding_norm=True, norm="layernorm"
    )
    embed = Embed(cfg)
    keys = jax.random.split(key, 2)
    embed.table[...] = jax.random.normal(keys[0], (16, 6))
    embed.positions[...] = jax.random.normal(keys[1], (9, 6))
    embed.norm.scale[...] = jnp.full(6, 2.0)
    embed.norm.bias[...] = jnp.full(6, 0.5)
    tokens, positions = np.array([[3, 15]]), np.array([[8, 0]])
    x = 3.0 * np.asarray(embed.table[...])[tokens] + np.asarray(embed.positions[...])[positions]
    x -= x.mean(-1, keepdims=True)
    expected = 2.0 * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) + 0.5
    actual = embed(jnp.asarray(tokens), jnp.asarray(positions), None, Runtime())
    np.testing.assert_allclose(actual, expected, atol=SIMPLE)


def test_products_follow_the_runtime(key) -> None:
    """One injected function sees every product, with the dtype that the runtime asks for."""
    seen = []

    def product(spec: str, x: jax.Array, w: jax.Array, *, out_dtype: object) -> jax.Array:
        seen.append((spec, w.dtype, out_dtype))
        return jnp.einsum(spec, x, w.astype(x.dtype))

    runtime = Runtime(product=product, dtype=jnp.bfloat16)
    bound(CFG, key)(jnp.ones((1, 2, 6)), runtime)
    assert [spec for spec, _, _ in seen] == ["btd,df->btf", "btd,df->btf", "btf,fd->btd"]
    assert {(w, out) for _, w, out in seen} == {(jnp.dtype("bfloat16"), jnp.float32)}


def test_dropout_keeps_the_mean_and_its_share(key) -> None:
    dropout = Dropout(key, jnp.float32(0.3), jnp.arange(64, dtype=jnp.int32))
    y = np.asarray(dropout(jnp.ones((64, 16, 32))))
    # The rate is 19,661 / 2^16, the nearest there is; the mean stays exact.
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(2**16 / (2**16 - 19661))}
    # 32,768 draws: the share of zeros is 0.3 with a standard deviation of 0.0025.
    assert abs((y == 0).mean() - 0.3) < 0.0125
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y, np.asarray(dropout.at(1)(jnp.ones((64, 16, 32)))))


def test_dropout_follows_the_row_of_the_global_batch(key) -> None:
    x = jnp.ones((4, 3, 8))
    rate = jnp.float32(0.5)
    whole = Dropout(key, rate, jnp.arange(4, dtype=jnp.int32))(x)
    half = Dropout(key, rate, jnp.array([2, 3], jnp.int32))(x[2:])
    np.testing.assert_array_equal(whole[2:], half)
    np.testing.assert_allclose(
        Dropout(key, jnp.float32(0.0), jnp.arange(4, dtype=jnp.int32))(x), x, rtol=PARITY
    )
