"""Norms against float64 NumPy, in every option."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.norm import Norm

CFG = ModelConfig(16, 8, 1, norm_eps=1e-3)


def doubled(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, axes: tuple[int, ...]
) -> jax.Array:
    """A norm from outside the package, for the test below."""
    return 2.0 * x * scale


def filled(norm: Norm, key: jax.Array) -> Norm:
    """The norm with random scale and bias."""
    graphdef, state = nnx.split(norm)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(key, len(leaves))
    values = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, values))


def expected(x: np.ndarray, norm: Norm, cfg: ModelConfig) -> np.ndarray:
    x, axes = x.astype(np.float64), tuple(range(-norm.num_dims, 0))
    if cfg.norm == "layernorm":
        x = x - x.mean(axes, keepdims=True)
    x = x / np.sqrt((x**2).mean(axes, keepdims=True) + cfg.norm_eps)
    y = x * (np.asarray(norm.scale[...], np.float64) + cfg.norm_unit_offset)
    return y if norm.bias is None else y + np.asarray(norm.bias[...], np.float64)


@pytest.mark.parametrize(
    ("options", "shape", "has_bias"),
    [
        ({}, (8,), False),
        ({"norm_unit_offset": True}, (8,), False),
        ({"norm": "layernorm"}, (8,), True),
        ({"norm": "layernorm", "norm_bias": False}, (8,), False),
        ({"norm": "layernorm", "norm_unit_offset": True}, (8,), True),
        ({}, (3, 8), False),  # over all heads together
        ({"norm": "layernorm"}, (3, 8), True),
    ],
)
def test_norm_equals_numpy(key, options: dict[str, Any], shape: tuple, has_bias: bool) -> None:
    cfg = dataclasses.replace(CFG, **options)
    norm = filled(Norm(cfg, shape, (None,) * len(shape)), key)
    assert (norm.bias is not None) == has_bias
    x = np.asarray(0.05 * jax.random.normal(jax.random.fold_in(key, 1), (2, 5, *shape)) + 0.1)
    y = norm(jnp.asarray(x))
    np.testing.assert_allclose(y, expected(x, norm, cfg), atol=SIMPLE)


def test_a_norm_starts_as_the_identity_on_what_is_normal() -> None:
    x = jnp.array([[[3.0, -4.0, 0.0, 0.0]]])
    cfg = ModelConfig(16, 4, 1, norm_eps=1e-12)
    for unit_offset in (False, True):
        norm = Norm(dataclasses.replace(cfg, norm_unit_offset=unit_offset), (4,), (None,))
        ones = jnp.zeros(4) if unit_offset else jnp.ones(4)
        norm.scale[...] = ones
        np.testing.assert_allclose(norm(x), x / 2.5, rtol=PARITY)


def test_low_precision_input_is_normalised_in_float32(key) -> None:
    """In bfloat16 the mean of 4096 squares of numbers near 100 would be off by per cents."""
    x = (100.0 + jax.random.normal(key, (1, 1, 4096))).astype(jnp.bfloat16)
    norm = Norm(ModelConfig(16, 4096, 1, norm="layernorm"), (4096,), (None,))
    norm.scale[...] = jnp.ones(4096)
    y = norm(x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / exact.std()
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-3)


def test_a_norm_from_outside_the_package() -> None:
    norm = Norm(dataclasses.replace(CFG, norm="test_nn_norm:doubled"), (8,), (None,))
    norm.scale[...] = jnp.full(8, 3.0)
    np.testing.assert_array_equal(norm(jnp.ones((1, 1, 8))), np.full((1, 1, 8), 6.0))


def test_an_unknown_norm_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match='model.norm="rmsnrom".*did you mean "rmsnorm"'):
        Norm(dataclasses.replace(CFG, norm="rmsnrom"), (8,), (None,))
