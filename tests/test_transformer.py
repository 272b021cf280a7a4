"""The Transformer: who influences whom, and that no way of running it changes what it says."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import random_params
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.model import ModelConfig, RopeScaling
from llmasos_jax.models.definition import ModelDef, empty_cache, out_first, relayout
from llmasos_jax.models.layout import layer_specs, scan_layout, unrolled_layout
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.runtime import Runtime, dot_out_first

T, W = 9, 3
PLAIN = Runtime()
BASE = ModelConfig(
    vocab_size=20,
    embedding_dim=16,
    num_layers=5,
    context_length=16,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=24,
    attention_windows=(W, None),
    tie_embeddings=False,
)
GPT = {"norm": "layernorm", "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True}
SMALL = dataclasses.replace(BASE, num_layers=4)
# Together they have every kind of position, placement, block and tying, with and without windows.
CONFIGS = {
    "llama": BASE,
    "gpt": dataclasses.replace(
        SMALL, position="learned", mlp="gelu", attention_windows=(None,), tie_embeddings=True, **GPT
    ),
    "bloom": dataclasses.replace(SMALL, position="alibi", embedding_norm=True, mlp="relu", **GPT),
    "palm": dataclasses.replace(SMALL, block="parallel", rope_interleaved=True, num_kv_heads=1),
    "gemma": dataclasses.replace(
        SMALL,
        norm_placement="sandwich",
        norm_unit_offset=True,
        qk_norm="head",
        attention_soft_cap=2.0,
        logit_soft_cap=3.0,
        rope_theta_local=100.0,
        rope_scaling=RopeScaling("yarn", 4.0, 8),
    ),
}


def scanned(cfg: ModelConfig) -> ModelDef:
    return ModelDef(cfg, scan_layout(cfg))


def unrolled(cfg: ModelConfig) -> ModelDef:
    return ModelDef(cfg, unrolled_layout(cfg))


@partial(jax.jit, static_argnums=0, static_argnames="runtime")
def logits(
    definition: ModelDef,
    params: Any,
    tokens_bt: jax.Array,
    *,
    runtime: Runtime = PLAIN,
    segment_ids_bt: jax.Array | None = None,
    positions_bt: jax.Array | None = None,
    dropout: Dropout | None = None,
) -> jax.Array:
    model = definition.bind(params)
    hidden = model.hidden(
        tokens_bt,
        positions_bt=positions_bt,
        segment_ids_bt=segment_ids_bt,
        dropout=dropout,
        runtime=runtime,
    )
    return model.logits(hidden.x_btd, runtime)


def tokens(rows: int = 2, length: int = T, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 20, (rows, length)), jnp.int32)


@partial(jax.jit, static_argnums=0)
def jacobian(definition: ModelDef, params: Any, segment_ids_bt: jax.Array) -> jax.Array:
    """By how much row s of the table changes a random sum of the logits at t, [T, V, D]."""
    probe = jnp.asarray(np.random.default_rng(2).normal(size=20), jnp.float32)
    ids = jnp.arange(T, dtype=jnp.int32)[None]

    def scores(table: jax.Array) -> jax.Array:
        changed = {**params, "embed": {**params["embed"], "table": table}}
        return logits(definition, changed, ids, segment_ids_bt=segment_ids_bt)[0] @ probe

    return jax.jacrev(scores)(params["embed"]["table"])


def influence(cfg: ModelConfig, segments: np.ndarray) -> np.ndarray:
    """Whether the embedding at s changes the logits at t at all, by gradient, bool [T, S].

    Token s is the id s, so the gradient by row s of the table is that by the embedding at s.
    """
    definition = scanned(dataclasses.replace(cfg, num_layers=2, tie_embeddings=False))
    segment_ids_bt = jnp.asarray(segments, jnp.int32)[None]
    by_row = jacobian(definition, random_params(definition), segment_ids_bt)
    return np.asarray(jnp.abs(by_row).max(-1) > 0)[:, :T]


def reach(cfg: ModelConfig, segments: np.ndarray) -> np.ndarray:
    """What `influence` has to be: layer after layer, who sees whom."""
    t = np.arange(T)
    seen = np.eye(T, dtype=bool)
    for spec in layer_specs(cfg):
        back = t[:, None] - t[None, :]
        mask = (back >= 0) if cfg.causal else np.ones((T, T), bool)
        if spec.window is not None:
            mask &= np.abs(back) < spec.window
        mask &= segments[:, None] == segments[None, :]
        seen = (mask.astype(int) @ seen) > 0
    return seen


ONE_DOCUMENT = np.ones(T, int)
SEGMENTS = np.array([1, 1, 1, 2, 2, 2, 2, 0, 0])


@pytest.mark.parametrize("name", ["gpt", "bloom", "palm", "gemma"])
def test_no_token_is_influenced_by_a_later_one(name: str) -> None:
    np.testing.assert_array_equal(influence(CONFIGS[name], ONE_DOCUMENT), np.tri(T, dtype=bool))


@pytest.mark.parametrize(
    ("windows", "causal"), [((W,), True), ((W,), False), ((2, None), True), ((None,), False)]
)
def test_influence_reaches_as_far_as_windows_and_documents(windows: tuple, causal: bool) -> None:
    """Two layers of window 3 see 4 back; nothing crosses a document."""
    cfg = dataclasses.replace(BASE, num_layers=2, attention_windows=windows, causal=causal)
    for segments in (ONE_DOCUMENT, SEGMENTS):
        np.testing.assert_array_equal(influence(cfg, segments), reach(cfg, segments))


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_other_documents_change_nothing(name: str) -> None:
    definition = scanned(CONFIGS[name])
    params = random_params(definition)
    segments = jnp.asarray(SEGMENTS, jnp.int32)[None]
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 3, 0, 1]], jnp.int32)
    packed = partial(logits, definition, params, segment_ids_bt=segments, positions_bt=positions)
    ids = tokens(1)
    other = jnp.where(jnp.asarray(SEGMENTS == 2)[None], ids, (ids + 7) % 20)
    both = np.asarray(packed(ids))
    np.testing.assert_array_equal(both[:, 3:7], packed(other)[:, 3:7])
    assert not np.array_equal(both[:, :3], packed(other)[:, :3])
    alone = logits(definition, params, ids[:, 3:7])
    np.testing.assert_allclose(both[:, 3:7], alone, rtol=PARITY, atol=SIMPLE)


@pytest.mark.parametrize("name", CONFIGS)
def test_scanned_equals_unrolled(name: str) -> None:
    cfg = CONFIGS[name]
    params = random_params(scanned(cfg))
    other = relayout(params, scan_layout(cfg), unrolled_layout(cfg))
    actual = logits(unrolled(cfg), other, tokens())
    np.testing.assert_allclose(
        actual, logits(scanned(cfg), params, tokens()), rtol=SIMPLE, atol=SIMPLE
    )


def test_gradients_do_not_depend_on_layout_or_remat() -> None:
    cfg = dataclasses.replace(CONFIGS["gemma"], num_layers=2, attention_windows=(W,))
    layouts = scan_layout(cfg), unrolled_layout(cfg)
    params = random_params(scanned(cfg))

    @partial(jax.jit, static_argnums=(0, 2))
    def gradient(definition: ModelDef, params: Any, remat: str) -> Any:
        runtime = Runtime(remat=remat)
        loss = lambda params: jnp.sin(logits(definition, params, tokens(), runtime=runtime)).sum()
        return jax.grad(loss)(params)

    expected = gradient(scanned(cfg), params, "none")
    in_files = gradient(unrolled(cfg), relayout(params, *layouts), "full")
    for actual in (
        relayout(in_files, layouts[1], layouts[0]),
        gradient(scanned(cfg), params, "dots"),
        gradient(scanned(cfg), params, "full"),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=SIMPLE * np.abs(b).max()),
            actual,
            expected,
        )
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(expected))


PROMPTS = (6, 4)  # tokens of each row
LEFT = max(PROMPTS)


@partial(jax.jit, static_argnums=0)
def cached_logits(
    definition: ModelDef, params: Any, ids: jax.Array, cache: Any
) -> tuple[jax.Array, Any]:
    model = definition.bind(params)
    hidden = model.hidden(ids, cache=cache, runtime=PLAIN)
    return model.logits(hidden.x_btd, PLAIN), hidden.cache


@pytest.mark.parametrize(
    ("name", "make"), [*((name, unrolled) for name in CONFIGS), ("llama", scanned)]
)
def test_prefill_then_decode_equals_one_forward_pass(name: str, make: Any) -> None:
    """Rows of unequal length, padded on the left with whatever; slots to spare at the end."""
    definition = make(CONFIGS[name])
    params = random_params(definition)
    whole = tokens(2, LEFT + 3)
    expected = np.asarray(logits(definition, params, whole))
    padded = np.full((2, LEFT), 13, np.int32)
    for row, length in enumerate(PROMPTS):
        padded[row, LEFT - length :] = whole[row, :length]
    start = jnp.array([LEFT - length for length in PROMPTS], jnp.int32)
    cache = dataclasses.replace(empty_cache(definition, 2, LEFT + 5), start_b=start)
    scores, cache = cached_logits(definition, params, jnp.asarray(padded), cache)
    near = partial(np.testing.assert_allclose, rtol=SIMPLE, atol=SIMPLE)
    for row, length in enumerate(PROMPTS):
        near(scores[row, LEFT - length :], expected[row, :length])
    for step in range(3):
        ids = jnp.stack([whole[row, length + step] for row, length in enumerate(PROMPTS)])
        scores, cache = cached_logits(definition, params, ids[:, None], cache)
        for row, length in enumerate(PROMPTS):
            near(scores[row, 0], expected[row, length + step])
    assert cache.slot == LEFT + 3


def test_prefill_in_chunks_padded_on_the_right() -> None:
    """What is written past the end of a prompt is written again before anybody sees it."""
    definition = unrolled(CONFIGS["bloom"])
    params = random_params(definition)
    ids = tokens(1, 8)
    expected = np.asarray(logits(definition, params, ids))
    cache = empty_cache(definition, 1, 12)
    first, cache = cached_logits(definition, params, ids[:, :4], cache)
    chunk = jnp.concatenate([ids[:, 4:6], jnp.full((1, 2), 13, jnp.int32)], axis=1)
    second, cache = cached_logits(definition, params, chunk, cache)
    cache = dataclasses.replace(cache, slot=jnp.int32(6))
    third, cache = cached_logits(definition, params, ids[:, 6:7], cache)
    fourth, _ = cached_logits(definition, params, ids[:, 7:8], cache)
    actual = np.concatenate([first, second[:, :2], third, fourth], axis=1)
    np.testing.assert_allclose(actual, expected, rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_weights_with_outputs_first_give_the_same(name: str) -> None:
    definition = unrolled(CONFIGS[name])
    params = random_params(definition)
    moved = out_first(definition, params)
    assert moved["prefix"]["0"]["attn"]["o"].shape == (16, 4, 4)
    assert moved["prefix"]["0"]["mlp"]["up"].shape == (24, 16)
    runtime = Runtime(product=dot_out_first)
    actual = logits(definition, moved, tokens(), runtime=runtime)
    expected = logits(definition, params, tokens())
    np.testing.assert_allclose(actual, expected, rtol=SIMPLE, atol=SIMPLE)


def test_dropout_is_the_same_in_every_layout(key) -> None:
    cfg = dataclasses.replace(BASE, num_layers=2, attention_windows=(W,))
    dropout = Dropout(key, jnp.float32(0.2), jnp.arange(2, dtype=jnp.int32))
    params = random_params(scanned(cfg))
    other = relayout(params, scan_layout(cfg), unrolled_layout(cfg))
    with_noise = logits(scanned(cfg), params, tokens(), dropout=dropout)
    unrolled_noise = logits(unrolled(cfg), other, tokens(), dropout=dropout)
    np.testing.assert_allclose(with_noise, unrolled_noise, rtol=SIMPLE, atol=SIMPLE)
    assert np.abs(with_noise - logits(scanned(cfg), params, tokens())).max() > 0.1
    # A row's noise is its own, whatever stands beside it.
    second = dataclasses.replace(dropout, rows_b=jnp.array([1], jnp.int32))
    alone = logits(scanned(cfg), params, tokens()[1:], dropout=second)
    np.testing.assert_allclose(alone, with_noise[1:], rtol=SIMPLE, atol=SIMPLE)


def test_hidden_states_after_each_layer() -> None:
    cfg = CONFIGS["llama"]
    params = random_params(scanned(cfg))

    @partial(jax.jit, static_argnums=0)
    def layers(definition: ModelDef, params: Any) -> tuple:
        hidden = definition.bind(params).hidden(tokens(), runtime=PLAIN, all_layers=True)
        return hidden.layers, hidden.x_btd

    states, last = layers(scanned(cfg), params)
    assert len(states) == cfg.num_layers + 1
    np.testing.assert_array_equal(states[0], params["embed"]["table"][tokens()])
    np.testing.assert_array_equal(states[-1], last)
    other = relayout(params, scan_layout(cfg), unrolled_layout(cfg))
    for a, b in zip(states, layers(unrolled(cfg), other)[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=SIMPLE, atol=SIMPLE)
    # Three layers by themselves end, before their norm, where the whole model is after three.
    short = dataclasses.replace(cfg, num_layers=3, final_norm=False)
    first = {name: other["prefix"][name] for name in "012"}
    cut = {"embed": params["embed"], "head": params["head"], "prefix": first}
    np.testing.assert_allclose(layers(unrolled(short), cut)[1], states[3], rtol=SIMPLE, atol=SIMPLE)


def test_bfloat16_products_give_float32_logits_near_by() -> None:
    definition = scanned(CONFIGS["llama"])
    params = random_params(definition)
    exact = np.asarray(logits(definition, params, tokens()))
    for runtime in (
        Runtime(dtype=jnp.bfloat16),
        Runtime(dtype=jnp.bfloat16, act_dtype=jnp.bfloat16),
    ):
        low = logits(definition, params, tokens(), runtime=runtime)
        assert low.dtype == jnp.float32
        error = np.abs(np.asarray(low) - exact).max() / exact.std()
        assert 1e-4 < error < 0.3


def test_no_array_meets_another_of_fewer_dimensions() -> None:
    """The whole suite runs under this setting; here it is seen to be on."""
    assert jax.config.jax_numpy_rank_promotion == "raise"
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 3)) + jnp.ones(3)
