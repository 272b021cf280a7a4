"""Latent attention: against loops in float64, transformers' DeepSeek blocks, its cache, meshes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_meshes import MIXED, assert_mesh_is_one_device, config
from on_meshes import SMALL as TRAINED
from small_model import SMALL, greedy_by_forward, ids_of, loud, small_model
from tolerances import PARITY, SIMPLE, WHOLE_MODEL

from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig, RopeScaling
from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.count import count_parameters, forward_flops_per_token
from llmasos_jax.models.definition import empty_cache, file_def, init_params
from llmasos_jax.nn.kernels import reference
from llmasos_jax.nn.latent import MultiHeadLatentAttention
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.rope import rotations
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.splash import splash_attention
from llmasos_jax.parallel.mesh import make_mesh

B, T, D, N, H, P, R, Q, Z = 2, 7, 20, 4, 10, 4, 12, 8, 6
CFG = ModelConfig(
    16, D, 1, num_heads=N, head_dim=H, latent=LatentAttention(R, Q, P, Z), rope_interleaved=True
)
STRAIGHT = CFG.replace(latent=LatentAttention(R, None, P, None), rope_interleaved=False)
INDEX = jnp.arange(T, dtype=jnp.int32)[None]
CAUSAL = Visibility(INDEX, INDEX, None, None)


def bound(cfg: ModelConfig, key: jax.Array) -> MultiHeadLatentAttention:
    """The module with random weights; norms' scales are about 1."""
    attention = MultiHeadLatentAttention(cfg)
    for i, name in enumerate(("q_down", "q", "kv_down", "k_rope", "k", "v", "o", "o_bias")):
        if (param := getattr(attention, name)) is not None:
            param[...] = 0.4 * jax.random.normal(jax.random.fold_in(key, i), param.shape)
    for i, norm in enumerate((attention.q_down_norm, attention.kv_norm)):
        if norm is not None:
            noise = jax.random.normal(jax.random.fold_in(key, 90 + i), norm.scale.shape)
            norm.scale[...] = 1 + 0.3 * noise
    return attention


def run(attention: MultiHeadLatentAttention, cfg: ModelConfig, x: jax.Array) -> np.ndarray:
    turn = rotations(cfg, jnp.broadcast_to(INDEX, x.shape[:2]))["global"]
    out, cache = attention(x, CAUSAL, turn, None, None, Runtime())
    assert cache is None
    return np.asarray(out)


def turned(x: np.ndarray, position: int, interleaved: bool) -> np.ndarray:
    """One rotated part, P numbers, as complex numbers."""
    first, second = (x[0::2], x[1::2]) if interleaved else np.split(x, 2)
    y = (first + 1j * second) * np.exp(1j * position / 10000.0 ** (np.arange(0, P, 2) / P))
    # Where a pair's numbers stand makes no difference to a product of two such vectors.
    return np.concatenate([y.real, y.imag])


def by_hand(w: dict[str, np.ndarray], cfg: ModelConfig, x: np.ndarray) -> np.ndarray:
    """One token of one row at a time: equations 37 to 47 of arXiv 2405.04434."""

    def norm(y: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return y / np.sqrt((y * y).mean() + cfg.latent.norm_eps) * scale

    out = np.zeros(x.shape) + w.get("o_bias", 0.0)
    for b, n in np.ndindex(B, N):
        keys, values = [], []
        for t in range(T):
            latent = norm(x[b, t] @ w["kv_down"], w["kv_norm"])
            rope = turned(x[b, t] @ w["k_rope"], t, cfg.rope_interleaved)
            keys.append(np.concatenate([latent @ w["k"][:, n], rope]))
            values.append(latent @ w["v"][:, n])
            y = norm(x[b, t] @ w["q_down"], w["q_down_norm"]) if "q_down" in w else x[b, t]
            query = y @ w["q"][:, n]
            rope = turned(query[-P:], t, cfg.rope_interleaved)
            scores = np.array(keys) @ np.concatenate([query[:-P], rope]) * cfg.head_width**-0.5
            weights = np.exp(scores) / np.exp(scores).sum()
            out[b, t] += weights @ np.array(values) @ w["o"][n]
    return out


@pytest.mark.parametrize(
    "cfg", [CFG, STRAIGHT, CFG.replace(attention_out_bias=True, norm_unit_offset=True)]
)
def test_it_equals_numpy(key, cfg: ModelConfig) -> None:
    attention = bound(cfg, key)
    x = jax.random.normal(jax.random.fold_in(key, 50), (B, T, D))
    w = {name: getattr(attention, name) for name in ("q_down", "q", "kv_down", "k_rope", "k", "v")}
    w |= {"o": attention.o, "o_bias": attention.o_bias, "kv_norm": attention.kv_norm.scale}
    w |= {"q_down_norm": attention.q_down_norm and attention.q_down_norm.scale}
    arrays = {n: np.asarray(v[...], np.float64) for n, v in w.items() if v is not None}
    expected = by_hand(arrays, cfg, np.asarray(x, np.float64))
    np.testing.assert_allclose(run(attention, cfg, x), expected, atol=SIMPLE)


YARN = {
    **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.7, "mscale_all_dim": 0.9},
}


@pytest.mark.parity
@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("deepseek_v2", {"q_lora_rank": Q}),
        ("deepseek_v2", {"q_lora_rank": None}),
        ("deepseek_v3", {"q_lora_rank": Q}),
        ("deepseek_v3", {"q_lora_rank": Q, "rope_interleave": False}),
    ],
)
def test_it_equals_deepseek_of_transformers(key, family: str, options: dict, scaling) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    import importlib

    stem = family.title().replace("_", "")
    folder = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = getattr(folder, f"{stem}Config")(
        hidden_size=D,
        num_attention_heads=N,
        num_key_value_heads=N,
        kv_lora_rank=R,
        qk_rope_head_dim=P,
        qk_nope_head_dim=H - P,
        v_head_dim=Z,
        max_position_embeddings=512,
        rms_norm_eps=0.1,  # of the model's norms: those of the latent vectors have their own
        rope_parameters={"rope_theta": 10000.0, **(scaling or {"rope_type": "default"})},
        attn_implementation="eager",
        **options,
    )
    theirs, turn = getattr(folder, f"{stem}Attention")(config, 0), None
    turn = getattr(folder, f"{stem}RotaryEmbedding")(config)
    rope = RopeScaling()
    if scaling:
        rope = RopeScaling("yarn", 8.0, 64, attention_factor=turn.attention_scaling)
    cfg = CFG.replace(
        latent=LatentAttention(R, options["q_lora_rank"], P, Z),
        rope_interleaved=options.get("rope_interleave", True),
        rope_scaling=rope,
        attention_scale=theirs.scaling if scaling else None,
    )
    ours = bound(cfg, key)
    x = np.array(jax.random.normal(jax.random.fold_in(key, 50), (B, T, D)))
    mask = torch.full((T, T), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        fill(torch, theirs, ours)
        positions = torch.arange(T)[None]
        expected, _ = theirs(
            torch.from_numpy(x),
            attention_mask=mask,
            position_embeddings=turn(torch.from_numpy(x), positions),
        )
    np.testing.assert_allclose(run(ours, cfg, jnp.asarray(x)), expected.numpy(), atol=SIMPLE)
    if scaling:
        assert theirs.scaling != pytest.approx(H**-0.5) and turn.attention_scaling != 1


def fill(torch: Any, theirs: Any, ours: MultiHeadLatentAttention) -> None:
    """Writes our weights into their module; each of theirs must be written."""
    flat = lambda w: np.asarray(w[...]).reshape(w.shape[0], -1).T
    both = np.concatenate([np.asarray(ours.k[...]), np.asarray(ours.v[...])], axis=-1)
    weights = {
        "kv_a_proj_with_mqa": np.concatenate([flat(ours.kv_down), flat(ours.k_rope)]),
        "kv_a_layernorm": np.asarray(ours.kv_norm.scale[...]),
        "kv_b_proj": both.reshape(R, -1).T,
        "o_proj": np.asarray(ours.o[...]).reshape(-1, D).T,
    }
    if ours.q_down is None:
        weights["q_proj"] = flat(ours.q)
    else:
        weights |= {"q_a_proj": flat(ours.q_down), "q_b_proj": flat(ours.q)}
        weights["q_a_layernorm"] = np.asarray(ours.q_down_norm.scale[...])
    found = dict(theirs.named_parameters())
    assert {f"{name}.weight" for name in weights} == set(found)
    for name, array in weights.items():
        found[f"{name}.weight"].copy_(torch.from_numpy(array.copy()))


WHOLE = SMALL.replace(num_kv_heads=None, latent=LatentAttention(24, 16, 6, 8), num_layers=2)


def test_counts_equal_the_shapes() -> None:
    for cfg in (WHOLE, WHOLE.replace(latent=LatentAttention(24, None, 4, None))):
        leaves = jax.tree.leaves(file_def(cfg).shapes)
        assert count_parameters(cfg) == sum(math.prod(leaf.shape) for leaf in leaves)
    layers = jax.eval_shape(lambda: empty_cache(file_def(WHOLE), 1, 1)).layers
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layers))
    assert numbers == 2 * 4 * (12 + 8)  # keys and values of each head and layer
    # Twice the tokens seen: the scores' 12 and the values' 8 numbers of each head, a product each.
    more = forward_flops_per_token(WHOLE, 33) - forward_flops_per_token(WHOLE, 1)
    assert more == 2 * 2 * 4 * (12 + 8) * 16


def test_cached_logits_equal_one_forward() -> None:
    definition, runtime = file_def(WHOLE), Runtime()
    params = init_params(definition, jax.random.key(1), std=0.3)
    tokens = np.random.default_rng(0).integers(0, 259, (2, 16)).astype(np.int32)
    starts = np.array([0, 5], np.int32)
    segments = (np.arange(16)[None] >= starts[:, None]).astype(np.int32)

    @jax.jit
    def extend(params, piece, cache):
        hidden = definition.bind(params).hidden(piece, cache=cache, runtime=runtime)
        return hidden.x_btd, hidden.cache

    @jax.jit
    def whole(params, tokens, segments):
        positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
        options = {"positions_bt": positions, "segment_ids_bt": segments, "runtime": runtime}
        return definition.bind(params).hidden(tokens, **options).x_btd

    cache = dataclasses.replace(empty_cache(definition, 2, 24), start_b=jnp.asarray(starts))
    parts = []
    for at, to in ((0, 8), *((i, i + 1) for i in range(8, 16))):
        x, cache = extend(params, tokens[:, at:to], cache)
        parts.append(x)
    got, expected = np.concatenate(parts, axis=1), np.asarray(whole(params, tokens, segments))
    assert expected.std() > 0.9
    np.testing.assert_allclose(got[0], expected[0], atol=SIMPLE)
    np.testing.assert_allclose(got[1, 5:], expected[1, 5:], atol=SIMPLE)


def test_texts_equal_whole_forwards_on_one_device_and_on_a_mesh() -> None:
    model = loud(small_model(WHOLE))
    ids = ids_of(model, ["Hello", "x"], 6, temperature=0.0)
    expected, margins = greedy_by_forward(model, model.encode("Hello"), 6)
    assert min(margins) > WHOLE_MODEL and ids[0] == expected
    sharded = loud(small_model(WHOLE), make_mesh(MeshConfig(tensor=2), jax.devices()[:2]))
    assert ids_of(sharded, ["Hello", "x"], 6, temperature=0.0) == ids
    k = sharded._weights.params["prefix"]["0"]["attn"]["k"]
    assert k.addressable_shards[0].data.shape == (24, 2, 6)


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=(2, 4)), MIXED])
def test_loss_and_gradients_do_not_depend_on_the_mesh(mesh: MeshConfig) -> None:
    model = TRAINED.replace(latent=LatentAttention(16, 24, 4, 6), head_dim=8)
    assert_mesh_is_one_device(config(model, mesh))


def test_the_tpu_kernel_takes_values_of_another_width() -> None:
    rng = np.random.default_rng(1)
    index = jnp.arange(128, dtype=jnp.int32)[None]
    visible = Visibility(index, index, None, None)
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=(1, 128, 2, width)), jnp.float32)
        for width in (192, 192, 128, 128)
    )

    def value_and_gradients(attend, **options):
        out, pull = jax.vjp(lambda *xs: attend(*xs, visible, scale=0.1, **options), q, k, v)
        return out, *pull(cotangent)

    found = value_and_gradients(splash_attention, interpret=True)
    for a, b in zip(found, value_and_gradients(reference), strict=True):
        assert jnp.linalg.norm(a - b) <= PARITY * jnp.linalg.norm(b)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position": "learned"}, "model.position='learned' does not go with model.latent"),
        ({"num_kv_heads": 2}, "model.num_kv_heads=2"),
        ({"latent": LatentAttention(R, Q, 10, Z)}, "rope_dim=10 must be even and below head_dim"),
        ({"latent": LatentAttention(0, Q)}, "kv_rank=0 is ordinary attention"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CFG.replace(**changes)
