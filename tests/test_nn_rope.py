"""Rotary positions: against complex numbers, transformers' tables, and what a rotation keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import greedy_by_forward, ids_of, loud, small_model
from tolerances import PARITY, SIMPLE, WHOLE_MODEL

from llmasos_jax.config.model import ModelConfig, RopeScaling
from llmasos_jax.models.definition import empty_cache, file_def, init_params
from llmasos_jax.nn.cache import Cache
from llmasos_jax.nn.rope import Rotation, document_lengths, frequencies, rotate, rotations
from llmasos_jax.nn.runtime import Runtime

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


LONG = RopeScaling("longrope", 4.0, 16, short_factors=(1.0, 1.1, 1.3), long_factors=(2.0, 3.0, 4.5))
PHI = ModelConfig(
    50,
    32,
    2,
    context_length=96,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=40,
    rope_fraction=0.75,
    rope_scaling=LONG,
    tie_embeddings=False,
)


def test_longrope_chooses_by_the_sequence_and_divides() -> None:
    steps = 10000.0 ** (-np.arange(0, 6, 2) / 6)
    m = np.sqrt(1 + np.log(4.0) / np.log(16.0))
    positions = np.array([[0, 3, 15], [0, 3, 16], [0, 3, 3]])
    table = rotation(positions, PHI)
    for row, factors in enumerate([(1.0, 1.1, 1.3), (2.0, 3.0, 4.5), (1.0, 1.1, 1.3)]):
        angles = positions[row][:, None] * steps / np.array(factors)
        np.testing.assert_allclose(table.sin[row], m * np.sin(angles), atol=PARITY)
        np.testing.assert_allclose(table.cos[row], m * np.cos(angles), atol=PARITY)
    given = PHI.replace(rope_scaling=dataclasses.replace(LONG, attention_factor=0.7))
    np.testing.assert_allclose(np.hypot(*leaves(rotation(positions, given))), 0.7, rtol=PARITY)
    small = PHI.replace(rope_scaling=dataclasses.replace(LONG, factor=0.5))
    np.testing.assert_allclose(np.hypot(*leaves(rotation(positions, small))), 1.0, rtol=PARITY)


def leaves(table: Rotation) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(table.sin), np.asarray(table.cos)


def test_documents_of_a_packed_row_have_lengths_of_their_own() -> None:
    segments = np.array([[1] * 17 + [2] * 5 + [0] * 2])
    positions = np.concatenate([np.arange(17), np.arange(5), np.zeros(2, int)])[None]
    found = document_lengths(jnp.asarray(positions), jnp.asarray(segments))
    assert np.asarray(found)[0].tolist() == [17] * 17 + [5] * 5 + [1] * 2
    definition = file_def(PHI)
    params = init_params(definition, jax.random.key(2), std=0.3)
    tokens = np.random.default_rng(0).integers(0, 50, (1, 24)).astype(np.int32)

    @jax.jit
    def forward(tokens: jax.Array, options: dict) -> jax.Array:
        return definition.bind(params).hidden(tokens, runtime=Runtime(), **options).x_btd

    def hidden(part: slice, **options: jax.Array) -> np.ndarray:
        return np.asarray(forward(tokens[:, part], options))

    options = {"positions_bt": jnp.asarray(positions), "segment_ids_bt": jnp.asarray(segments)}
    packed = hidden(slice(0, 24), **options)
    np.testing.assert_allclose(packed[:, :17], hidden(slice(0, 17)), atol=SIMPLE)
    np.testing.assert_allclose(packed[:, 17:22], hidden(slice(17, 22)), atol=SIMPLE)


@pytest.mark.parity
@pytest.mark.parametrize("length", [9, 16, 17, 40])
def test_longrope_with_a_share_of_the_head_equals_phi3_of_transformers(length: int) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        partial_rotary_factor=0.75,
        rope_scaling={
            "type": "longrope",
            "short_factor": list(LONG.short_factors),
            "long_factor": list(LONG.long_factors),
        },
        pad_token_id=0,
        attn_implementation="eager",
    )
    theirs = transformers.Phi3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.25)
    w = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    params = {
        "embed": {"table": w["model.embed_tokens.weight"]},
        "final_norm": {"scale": w["model.norm.weight"]},
        "head": {"w": w["lm_head.weight"].T},
        "prefix": {str(i): phi_block(w, f"model.layers.{i}.") for i in range(2)},
    }
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(x.size for x in w.values())
    tokens = np.random.default_rng(length).integers(0, 50, (2, length))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()

    @jax.jit
    def logits(params: dict, tokens: jax.Array) -> jax.Array:
        model = file_def(PHI).bind(params)
        return model.logits(model.hidden(tokens, runtime=Runtime()).x_btd, Runtime())

    actual = np.asarray(logits(params, tokens.astype(np.int32)))
    assert expected.std() > 1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=SIMPLE * np.abs(expected).max())


def phi_block(w: dict[str, np.ndarray], at: str) -> dict:
    q, k, v = np.split(w[at + "self_attn.qkv_proj.weight"].T, [32, 48], axis=1)
    gate, up = np.split(w[at + "mlp.gate_up_proj.weight"].T, 2, axis=1)
    heads = {"q": (32, 4, 8), "k": (32, 2, 8), "v": (32, 2, 8)}
    attn = {n: a.reshape(heads[n]) for n, a in (("q", q), ("k", k), ("v", v))}
    return {
        "attn": {**attn, "o": w[at + "self_attn.o_proj.weight"].T.reshape(4, 8, 32)},
        "attn_norm": {"scale": w[at + "input_layernorm.weight"]},
        "mlp_norm": {"scale": w[at + "post_attention_layernorm.weight"]},
        "mlp": {"gate": gate, "up": up, "down": w[at + "mlp.down_proj.weight"].T},
    }


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_long_prompt_in_pieces_equals_one_forward(deterministic: bool) -> None:
    """The first piece must know that the prompt will be long; a short prompt beside it is short."""
    scaling = dataclasses.replace(LONG, original_length=66)
    cfg = PHI.replace(vocab_size=300, rope_scaling=scaling, tie_embeddings=True)
    model = loud(small_model(cfg))
    prompts = ["x" * 71, "Hi"]  # and the beginning id; pieces are of 64 tokens if deterministic
    runs = [prompts] if not deterministic else [[p] for p in prompts]
    found = [
        ids
        for run in runs
        for ids in ids_of(model, run, 4, temperature=0.0, deterministic=deterministic)
    ]
    for prompt, ids in zip(prompts, found, strict=True):
        expected, margins = greedy_by_forward(model, model.encode(prompt), 4)
        assert min(margins) > WHOLE_MODEL and ids == expected


def test_keys_in_the_cache_keep_their_rotation_when_the_text_grows_long() -> None:
    cfg = PHI.replace(num_layers=1, rope_fraction=1.0, head_dim=6, num_kv_heads=1)
    definition = file_def(cfg)
    params = init_params(definition, jax.random.key(2), std=0.3)
    tokens = np.arange(20, dtype=np.int32)[None]

    @jax.jit
    def extend(piece: jax.Array, cache: Cache) -> Cache | None:
        return definition.bind(params).hidden(piece, cache=cache, runtime=Runtime()).cache

    cache = dataclasses.replace(empty_cache(definition, 1, 20), length_b=jnp.array([14]))
    for piece in (slice(0, 14), *(slice(i, i + 1) for i in range(14, 20))):
        cache = extend(tokens[:, piece], cache)
    x = np.asarray(params["embed"]["table"])[:20]
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.norm_eps)
    k = np.einsum("td,dkh->tkh", x, np.asarray(params["prefix"]["0"]["attn"]["k"]))
    lengths = np.maximum(14, np.arange(20) + 1)[None]
    table = rotations(cfg, jnp.arange(20)[None], jnp.asarray(lengths))["global"]
    expected = np.asarray(rotate(jnp.asarray(k)[None], table))[0, :, 0]
    np.testing.assert_allclose(
        np.asarray(cache.layers["prefix"]["0"].k_rhs)[0].T, expected, atol=SIMPLE
    )
    angle = np.arctan2(*leaves(table))[0, :, 1]  # the second pair's frequency is divided by 1.1, 3
    ratio = angle[16] / angle[15] * 15 / 16
    assert ratio == pytest.approx(1.1 / 3, rel=1e-5)
