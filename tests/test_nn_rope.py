"""Rotary positions: against complex numbers, transformers' tables, and what a rotation keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.model import ModelConfig, RopeScaling
from llmasos_jax.nn.rope import Rotation, frequencies, rotate, rotations

CFG = ModelConfig(16, 48, 2, num_heads=4, head_dim=12)
SCALINGS = {
    "none": (RopeScaling(), {"rope_type": "default"}),
    "linear": (RopeScaling("linear", factor=4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        RopeScaling("llama3", 8.0, 256, low_frequency=2.0, high_frequency=5.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 256,
            "low_freq_factor": 2.0,
            "high_freq_factor": 5.0,
        },
    ),
    "yarn": (
        RopeScaling("yarn", 16.0, 512, beta_fast=20.0, beta_slow=2.0),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
        },
    ),
    "yarn with its own multiplier": (
        RopeScaling("yarn", 16.0, 512, attention_factor=0.7),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 512,
            "attention_factor": 0.7,
        },
    ),
}


def rotation(positions: np.ndarray, cfg: ModelConfig = CFG) -> Rotation:
    return rotations(cfg, jnp.asarray(positions, jnp.int32))["global"]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotation_is_a_complex_product(key, interleaved: bool, fraction: float) -> None:
    cfg = ModelConfig(16, 48, 1, num_heads=4, head_dim=12, rope_fraction=fraction)
    positions = np.array([[0, 1, 5, 90], [3, 3, 2, 7]])
    x = np.asarray(jax.random.normal(key, (2, 4, 3, 12)))
    actual = np.asarray(rotate(jnp.asarray(x), rotation(positions, cfg), interleaved=interleaved))
    width = cfg.rope_width
    head, rest = x[..., :width].astype(np.float64), x[..., width:]
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else np.split(head, 2, axis=-1)
    angles = positions[:, :, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    turned = (a + 1j * b) * np.exp(1j * angles)[:, :, None]
    pair = (turned.real, turned.imag)
    both = np.stack(pair, -1).reshape(head.shape) if interleaved else np.concatenate(pair, -1)
    np.testing.assert_allclose(actual[..., :width], both, atol=SIMPLE)
    np.testing.assert_array_equal(actual[..., width:], rest)
    assert (width < 12) == (rest.size > 0)


def test_scores_depend_on_distance_alone_and_norms_stay(key) -> None:
    q, k = jax.random.normal(key, (2, 1, 1, 1, 12))
    at = lambda x, position: np.asarray(rotate(x, rotation(np.array([[position]]))))[0, 0, 0]
    near = at(q, 5) @ at(k, 2)
    np.testing.assert_allclose(near, at(q, 45) @ at(k, 42), atol=SIMPLE)
    assert abs(near - at(q, 5) @ at(k, 3)) > 0.1
    np.testing.assert_allclose(np.linalg.norm(at(q, 77)), np.linalg.norm(q), rtol=PARITY)


@pytest.mark.parity
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_those_of_transformers(name: str) -> None:
    pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling, theirs = SCALINGS[name]
    theirs = {"rope_theta": 5000.0, **theirs}
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=8192, rope_parameters=theirs
    )
    expected = LlamaRotaryEmbedding(config)
    inverse, multiplier = frequencies(64, 5000.0, scaling)
    np.testing.assert_allclose(inverse, expected.inv_freq.numpy(), rtol=PARITY)
    assert multiplier == pytest.approx(expected.attention_scaling, rel=PARITY)
    plain, _ = frequencies(64, 5000.0, RopeScaling())
    assert (name == "none") == bool(np.array_equal(inverse, plain))


def test_yarn_multiplies_sine_and_cosine() -> None:
    scaling = RopeScaling("yarn", factor=np.e**3, original_length=64)
    cfg = ModelConfig(16, 48, 1, num_heads=4, head_dim=12, rope_scaling=scaling)
    table = rotation(np.array([[0, 3]]), cfg)
    np.testing.assert_allclose(np.hypot(table.sin, table.cos), 1.3, rtol=PARITY)


def test_windowed_layers_have_a_base_of_their_own() -> None:
    cfg = ModelConfig(
        16,
        48,
        2,
        num_heads=4,
        head_dim=12,
        rope_theta=1e6,
        rope_theta_local=100.0,
        rope_scaling=RopeScaling("linear", factor=8.0),
    )
    tables = rotations(cfg, jnp.array([[3]], jnp.int32))
    steps = np.arange(0, 12, 2) / 12
    np.testing.assert_allclose(tables["local"].sin[0, 0], np.sin(3 / 100.0**steps), atol=PARITY)
    np.testing.assert_allclose(tables["global"].sin[0, 0], np.sin(3 / 8 / 1e6**steps), atol=PARITY)
    assert rotations(ModelConfig(16, 48, 2, position="none"), jnp.array([[3]])) == {}


def test_angles_are_float32_however_wide_the_activations(key) -> None:
    """A bfloat16 position 257 would be 256."""
    x = jax.random.normal(key, (1, 2, 1, 12))
    table = rotation(np.array([[256, 257]]))
    low = rotate(x.astype(jnp.bfloat16), table)
    assert low.dtype == jnp.bfloat16
    high = rotate(x.astype(jnp.bfloat16).astype(jnp.float32), table)
    np.testing.assert_allclose(np.asarray(low, np.float32), high, rtol=2**-8, atol=2**-8)
