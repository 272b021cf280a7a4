"""Attention, masks and ALiBi against loops in float64 NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn import alibi
from llmasos_jax.nn.attention import Attention
from llmasos_jax.nn.kernels import dot_product
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime

B, T, S, N, K, H = 2, 5, 7, 6, 2, 4


def index(start: int, stop: int) -> jax.Array:
    return jnp.arange(start, stop, dtype=jnp.int32)[None]


def softmax_by_hand(
    q: Any, k: Any, v: Any, seen: Any, *, scale: float, soft_cap: float | None, slopes: Any
) -> np.ndarray:
    """One query at a time; queries are the last of the keys' places."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        head = n // (q.shape[2] // k.shape[2])
        scores = scale * k[b, :, head] @ q[b, t, n]
        if soft_cap is not None:
            scores = soft_cap * np.tanh(scores / soft_cap)
        if slopes is not None:
            scores -= slopes[n] * np.abs(t + S - T - np.arange(S))
        weights = np.where(np.broadcast_to(seen, (B, T, S))[b, t], np.exp(scores), 0.0)
        out[b, t, n] = weights / weights.sum() @ v[b, :, head]
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.9},
        {"soft_cap": 0.8},
        {"slopes": alibi.slopes(N)},
        {"soft_cap": 0.8, "slopes": alibi.slopes(N), "window": 3},
        {"window": 2},
        {"window": 2, "causal": False, "slopes": alibi.slopes(N)},
        {"causal": False},
    ],
)
def test_dot_product_equals_numpy(key, options: dict[str, Any]) -> None:
    q = jax.random.normal(key, (B, T, N, H))
    k, v = jax.random.normal(jax.random.fold_in(key, 1), (2, B, S, K, H))
    options = {"scale": 0.5, "soft_cap": None, "slopes": None, **options}
    limits = {name: options.pop(name) for name in ("causal", "window") if name in options}
    visible = Visibility(index(S - T, S), index(0, S), None, None, **limits)
    actual = dot_product(q, k, v, visible, runtime=Runtime(), **options)
    expected = softmax_by_hand(q, k, v, visible.mask(), **options)
    np.testing.assert_allclose(actual, expected, atol=PARITY)


def test_a_query_that_sees_nothing_gives_numbers_and_no_gradient(key) -> None:
    q, k, v = jax.random.normal(key, (3, 1, 3, 2, 4))
    segments = jnp.array([[0, 1, 1]])
    visible = Visibility(index(0, 3), index(0, 3), segments, 2 * segments)  # nobody meets

    def total(k: jax.Array) -> jax.Array:
        return dot_product(q, k, v, visible, scale=1.0, runtime=Runtime())[:, 1:].sum()

    assert np.isfinite(dot_product(q, k, v, visible, scale=1.0, runtime=Runtime())).all()
    assert np.isfinite(jax.grad(total)(k)).all()


PICTURES = {
    (True, None): "1000 1100 1110 1111",
    (True, 2): "1000 1100 0110 0011",
    (True, 1): "1000 0100 0010 0001",
    (False, None): "1111 1111 1111 1111",
    (False, 2): "1100 1110 0111 0011",
}


@pytest.mark.parametrize(("causal", "window"), PICTURES)
def test_masks_as_pictures(causal: bool, window: int | None) -> None:
    mask = Visibility(index(0, 4), index(0, 4), None, None, causal=causal, window=window).mask()
    picture = " ".join("".join(str(int(seen)) for seen in row) for row in np.asarray(mask[0]))
    assert picture == PICTURES[causal, window]


def test_segments_and_cache_slots_in_masks() -> None:
    segments = jnp.array([[1, 1, 2, 0], [3, 3, 3, 3]], jnp.int32)
    mask = np.asarray(Visibility(index(0, 4), index(0, 4), segments, segments).mask())
    assert mask[0].astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(mask[1], np.tri(4, dtype=bool))
    # Two tokens at slots 3 and 4 of six; the row starts at slot 1.
    started = jnp.array([[0, 1, 1, 1, 1, 1]], jnp.int32)
    ones = jnp.ones((1, 2), jnp.int32)
    mask = Visibility(index(3, 5), index(0, 6), ones, started, window=3).mask()
    assert np.asarray(mask[0]).astype(int).tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]


@pytest.mark.parametrize("num_heads", [1, 2, 8, 16])
def test_slopes_of_a_power_of_two(num_heads: int) -> None:
    expected = 2.0 ** (-8.0 * np.arange(1, num_heads + 1) / num_heads)
    np.testing.assert_allclose(alibi.slopes(num_heads), expected, rtol=PARITY)


def test_slopes_of_other_numbers_as_in_the_released_code() -> None:
    """Those of 8 heads, then every second one of 16 (as for BLOOM's 112 heads from 64 and 128)."""
    eight, sixteen = alibi.slopes(8), alibi.slopes(16)
    np.testing.assert_array_equal(alibi.slopes(12), [*eight, *sixteen[[0, 2, 4, 6]]])
    assert alibi.slopes(112).shape == (112,) and len(set(alibi.slopes(112).tolist())) == 112


CFG = ModelConfig(16, 24, 1, num_heads=6, num_kv_heads=2, head_dim=4, position="none")


def bound(cfg: ModelConfig, key: jax.Array) -> Attention:
    """Attention with random weights and biases."""
    attention = Attention(cfg)
    for i, name in enumerate(("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias")):
        param = getattr(attention, name)
        if param is not None:
            param[...] = 0.3 * jax.random.normal(jax.random.fold_in(key, i), param.shape)
    return attention


def test_projections_heads_and_biases_equal_numpy(key) -> None:
    cfg = dataclasses.replace(CFG, qkv_bias=True, attention_out_bias=True)
    attention = bound(cfg, key)
    x = jax.random.normal(jax.random.fold_in(key, 9), (B, T, 24))
    visible = Visibility(index(0, T), index(0, T), None, None)
    actual, cache = attention(x, visible, None, None, None, Runtime())
    w = {name: np.asarray(getattr(attention, name)[...], np.float64) for name in "qkvo"}
    b = {name: np.asarray(getattr(attention, f"{name}_bias")[...], np.float64) for name in "qkvo"}
    expected = np.zeros((B, T, 24)) + b["o"]
    for n in range(6):
        q = np.asarray(x) @ w["q"][:, n] + b["q"][n]
        k = np.asarray(x) @ w["k"][:, n // 3] + b["k"][n // 3]
        v = np.asarray(x) @ w["v"][:, n // 3] + b["v"][n // 3]
        scores = np.where(np.tri(T, dtype=bool), np.exp(q @ k.swapaxes(1, 2) / 2.0), 0.0)
        expected += scores / scores.sum(-1, keepdims=True) @ v @ w["o"][n]
    assert cache is None
    np.testing.assert_allclose(actual, expected, atol=SIMPLE)


def mean_attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    runtime: Runtime,
) -> jax.Array:
    """An attention from outside the package: the mean of what is visible."""
    mask = visible.mask().astype(v_bskh.dtype)
    weights = jnp.broadcast_to(
        mask / mask.sum(-1, keepdims=True), (v_bskh.shape[0], *mask.shape[1:])
    )
    out = jnp.einsum("bts,bskh->btkh", weights, v_bskh)
    return jnp.repeat(out, q_btnh.shape[2] // v_bskh.shape[2], axis=2)


def test_an_attention_from_outside_the_package(key) -> None:
    attention = bound(dataclasses.replace(CFG, attention="test_nn_attention:mean_attention"), key)
    x = jax.random.normal(jax.random.fold_in(key, 9), (B, T, 24))
    visible = Visibility(index(0, T), index(0, T), None, None)
    actual, _ = attention(x, visible, None, None, None, Runtime())
    values = jnp.repeat(jnp.einsum("btd,dkh->btkh", x, attention.v[...]), 3, axis=2)
    means = jnp.cumsum(values, axis=1) / jnp.arange(1, T + 1).reshape(1, T, 1, 1)
    expected = jnp.einsum("btnh,nhd->btd", means, attention.o[...])
    np.testing.assert_allclose(actual, expected, atol=SIMPLE)


def test_an_unknown_attention_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match='model.attention="dot_produkt".*did you mean "dot_prod'):
        Attention(dataclasses.replace(CFG, attention="dot_produkt"))
