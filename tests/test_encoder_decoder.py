"""Encoder-decoders and prefix models: who influences whom, and that no way of running differs."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import random_params
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.heads import Classifier, Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.format.names import expected, flatten, place_of, unflatten
from llmasos_jax.models.definition import ModelDef, empty_cache, init_params, out_first, relayout
from llmasos_jax.models.layout import encoder_config, scan_layout, unrolled_layout
from llmasos_jax.nn.runtime import Runtime, dot_out_first

PLAIN = Runtime()
V, S, T = 24, 8, 7
RELATIVE = {"position": "relative", "relative_buckets": 8, "relative_max_distance": 16}
BASE = ModelConfig(V, 16, 3, context_length=16, num_heads=4, num_kv_heads=2, ffn_dim=24).replace(
    encoder=Encoder(4), tie_embeddings=False
)
CONFIGS = {
    "t5": BASE.replace(mlp="relu", attention_scale=1.0, attention_windows=(3, None), **RELATIVE),
    "rope": BASE.replace(qk_norm="head", attention_soft_cap=4.0, norm_placement="sandwich"),
    "bart": BASE.replace(
        position="learned",
        norm="layernorm",
        norm_placement="post",
        final_norm=False,
        embedding_norm=True,
        mlp="gelu",
        **dict.fromkeys(("qkv_bias", "attention_out_bias", "mlp_bias"), True),
    ),
    "alibi": BASE.replace(position="alibi", qk_norm="full"),
}
READ = np.array([[1] * 4 + [2] * 3 + [0], [1] * 5 + [0] * 3])
WRITTEN = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0]])


def scanned(cfg: ModelConfig) -> ModelDef:
    return ModelDef(cfg, scan_layout(cfg))


def unrolled(cfg: ModelConfig) -> ModelDef:
    return ModelDef(cfg, unrolled_layout(cfg))


def ids(rows: int, length: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (rows, length)), jnp.int32)


@partial(jax.jit, static_argnums=0, static_argnames="runtime")
def logits(
    definition: ModelDef,
    params: Any,
    read_bs: jax.Array,
    written_bt: jax.Array,
    read_segments: jax.Array | None = None,
    segments: jax.Array | None = None,
    runtime: Runtime = PLAIN,
) -> jax.Array:
    model = definition.bind(params)
    encoded = model.encode(read_bs, segment_ids_bs=read_segments, runtime=runtime)
    hidden = model.hidden(written_bt, segment_ids_bt=segments, encoded=encoded, runtime=runtime)
    return model.logits(hidden.x_btd, runtime)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_token_depends_on_those_before_it_and_on_the_text_of_its_segment(name: str) -> None:
    # Embeddings by place: token i of the encoder is id i, of the decoder id S + i.
    cfg = CONFIGS[name].replace(attention_windows=(None,))
    definition = scanned(cfg)
    params = random_params(definition)
    read, written = jnp.arange(S)[None], S + jnp.arange(T)[None]
    probe = jnp.asarray(np.random.default_rng(2).normal(size=V), jnp.float32)

    def scores(table: jax.Array) -> jax.Array:
        changed = {**params, "embed": {**params["embed"], "table": table}}
        segments = jnp.asarray(READ[:1]), jnp.asarray(WRITTEN[:1])
        return logits(definition, changed, read, written, *segments)[0] @ probe

    by_row = jax.jit(jax.jacrev(scores))(params["embed"]["table"])
    found = np.asarray(jnp.abs(by_row).max(-1) > 0)
    same = WRITTEN[0][:, None] == READ[0][None]
    own = (WRITTEN[0][:, None] == WRITTEN[0][None]) & np.tri(T, dtype=bool)
    tokens = WRITTEN[0] > 0
    np.testing.assert_array_equal(found[tokens, :S], same[tokens])
    np.testing.assert_array_equal(found[tokens, S : S + T], own[tokens])


@pytest.mark.parametrize("name", CONFIGS)
def test_scanned_layers_and_turned_matrices_say_the_same(name: str) -> None:
    cfg = CONFIGS[name]
    one, other = scanned(cfg), unrolled(cfg)
    assert one.layout.encoder is not None and one.layout.encoder.count == 4
    params = random_params(one)
    flat = relayout(params, one.layout, other.layout)
    given = (ids(2, S, 1), ids(2, T, 2), jnp.asarray(READ), jnp.asarray(WRITTEN))
    wanted = logits(one, params, *given)
    np.testing.assert_allclose(logits(other, flat, *given), wanted, atol=SIMPLE, rtol=SIMPLE)
    turned = logits(other, out_first(other, flat), *given, runtime=Runtime(dot_out_first))
    np.testing.assert_allclose(turned, wanted, atol=SIMPLE, rtol=SIMPLE)
    again = relayout(flat, other.layout, one.layout)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    ("name", "make"), [("t5", scanned), ("bart", scanned), ("t5", unrolled), ("rope", unrolled)]
)
def test_decoding_with_kept_keys_is_the_whole_forward_pass(name: str, make: Any) -> None:
    cfg = CONFIGS[name]
    definition = make(cfg)
    params, read, written = random_params(definition), ids(2, S, 1), ids(2, T, 2)
    segments = jnp.asarray((READ > 0).astype(np.int32))
    wanted = logits(definition, params, read, written, segments)

    @jax.jit
    def encode(params: Any) -> Any:
        model = definition.bind(params)
        encoded = model.encode(read, segment_ids_bs=segments, runtime=PLAIN)
        return model.cross_cache(encoded, PLAIN)

    @jax.jit
    def step(params: Any, cache: Any, piece: jax.Array) -> Any:
        model = definition.bind(params)
        hidden = model.hidden(piece, cache=cache, runtime=PLAIN)
        return model.logits(hidden.x_btd, PLAIN), hidden.cache

    cross = encode(params)
    empty = empty_cache(definition, 2, T + 3, encoder_slots=S)
    assert jax.tree.map(jnp.shape, empty.cross) == jax.tree.map(jnp.shape, cross)
    cache = dataclasses.replace(empty, cross=cross)
    pieces = []
    for begin, end in [(0, 3), *((i, i + 1) for i in range(3, T))]:
        scores, cache = step(params, cache, written[:, begin:end])
        pieces.append(scores)
    found = jnp.concatenate(pieces, axis=1)
    np.testing.assert_allclose(found, wanted, atol=SIMPLE, rtol=SIMPLE)


def test_padding_of_the_encoder_changes_nothing() -> None:
    definition = scanned(CONFIGS["t5"])
    params, read, written = random_params(definition), ids(1, 5, 1), ids(1, T, 2)
    padded = jnp.pad(read, ((0, 0), (0, 3)), constant_values=9)
    segments = jnp.array([[1] * 5 + [0] * 3])
    np.testing.assert_allclose(
        logits(definition, params, padded, written, segments),
        logits(definition, params, read, written),
        atol=SIMPLE,
        rtol=SIMPLE,
    )


@pytest.mark.parametrize("windows", [(None,), (3,)])
def test_tokens_of_a_prefix_are_seen_by_their_segment(windows: tuple[int | None, ...]) -> None:
    cfg = ModelConfig(V, 16, 1, num_heads=2, prefix_lm=True, attention_windows=windows)
    cfg = cfg.replace(tie_embeddings=False, ffn_dim=16)
    definition = scanned(cfg)
    params, probe = random_params(definition), jnp.asarray(np.arange(V), jnp.float32)
    segments = np.array([1, 1, 1, 1, 2, 2, 2, 0])
    prefix = np.array([1, 1, 0, 0, 1, 1, 0, 0])
    index = np.arange(8)

    def scores(table: jax.Array) -> jax.Array:
        model = definition.bind({**params, "embed": {"table": table}})
        hidden = model.hidden(
            jnp.asarray(index)[None],
            segment_ids_bt=jnp.asarray(segments)[None],
            prefix_bt=jnp.asarray(prefix)[None],
            runtime=PLAIN,
        )
        return model.logits(hidden.x_btd, PLAIN)[0] @ probe

    by_row = jax.jit(jax.jacrev(scores))(params["embed"]["table"])
    back = index[:, None] - index[None]
    wanted = (segments[:, None] == segments[None]) & ((back >= 0) | (prefix[None] > 0))
    if windows[0] is not None:
        wanted &= np.abs(back) < windows[0]
    found = np.asarray(jnp.abs(by_row).max(-1) > 0)[:, :8]
    np.testing.assert_array_equal(found[:7], wanted[:7])


def test_a_prompt_read_in_one_call_is_a_prefix() -> None:
    """Padded on the left and on the right, as the two ways of the engine pad it."""
    cfg = ModelConfig(V, 16, 3, num_heads=2, ffn_dim=24, prefix_lm=True, **RELATIVE)
    definition = unrolled(cfg)
    params, text = random_params(definition), ids(1, 8, 3)
    prompt = 5

    @jax.jit
    def whole(params: Any) -> jax.Array:
        is_prefix = (jnp.arange(8) < prompt)[None]
        model = definition.bind(params)
        return model.hidden(text, prefix_bt=is_prefix, runtime=PLAIN).x_btd

    @jax.jit
    def read(params: Any, cache: Any, piece: jax.Array) -> Any:
        hidden = definition.bind(params).hidden(piece, cache=cache, runtime=PLAIN)
        return hidden.x_btd, hidden.cache

    wanted = whole(params)
    for left, right in ((3, 0), (0, 3)):
        padded = jnp.pad(text[:, :prompt], ((0, 0), (left, right)), constant_values=7)
        cache = dataclasses.replace(
            empty_cache(definition, 1, 16), start_b=jnp.array([left]), length_b=jnp.array([prompt])
        )
        x_btd, cache = read(params, cache, padded)
        pieces = [x_btd[:, left : left + prompt]]
        cache = dataclasses.replace(cache, slot=jnp.int32(left + prompt))
        for i in range(prompt, 8):
            x_btd, cache = read(params, cache, text[:, i : i + 1])
            pieces.append(x_btd)
        found = jnp.concatenate(pieces, axis=1)
        np.testing.assert_allclose(found, wanted, atol=SIMPLE, rtol=SIMPLE)


def test_starting_weights_do_not_depend_on_the_layout() -> None:
    cfg = BASE.replace(**RELATIVE)
    one, other = scanned(cfg), unrolled(cfg)
    # Compiling is most of the time here.
    options = {"xla_backend_optimization_level": 0}
    draw = jax.jit(init_params, static_argnums=0, static_argnames="std", compiler_options=options)
    params = draw(one, jax.random.key(0), std=0.5)
    flat = draw(other, jax.random.key(0), std=0.5)
    same = partial(np.testing.assert_allclose, rtol=PARITY)
    jax.tree.map(same, relayout(params, one.layout, other.layout), flat)
    first, twin = flat["encoder"]["prefix"]["0"]["attn"], flat["prefix"]["0"]["attn"]
    assert np.abs(np.asarray(first["q"] - twin["q"])).max() > 0.1
    # What writes into the residual stream is smaller by its own stack's depth: 4 and 3 layers.
    shares = [
        float(np.std([np.asarray(block["mlp"]["down"]) for block in stack["prefix"].values()]))
        for stack in (flat["encoder"], flat)
    ]
    np.testing.assert_allclose(shares, [0.5 / np.sqrt(8), 0.5 / np.sqrt(6)], rtol=0.06)


def test_names_of_files() -> None:
    cfg = CONFIGS["t5"]
    definition = unrolled(cfg)
    named, specs = flatten(definition.shapes), expected(cfg)
    assert named.keys() == specs.keys()
    assert all(named[n].shape == spec.shape for n, spec in specs.items())
    assert "encoder.relative.buckets" in specs and "relative.buckets" in specs
    assert "encoder.layers.3.mlp.up" in specs and "layers.2.cross_attn_norm.scale" in specs
    assert not any("cross_attn" in name for name in specs if name.startswith("encoder."))
    assert not any(name.startswith("encoder.embed") for name in specs)
    assert jax.tree.structure(unflatten(named)) == jax.tree.structure(definition.shapes)
    layout = scan_layout(cfg)
    assert place_of("encoder.layers.2.attn.q", layout) == ("encoder/periods/0/attn/q", 2)
    assert place_of("encoder.final_norm.scale", layout) == ("encoder/final_norm/scale", None)


def test_the_encoder_is_a_model_of_its_own() -> None:
    cfg = encoder_config(CONFIGS["t5"])
    assert (cfg.num_layers, cfg.causal, cfg.attention_windows, cfg.head) == (
        4,
        False,
        (None,),
        None,
    )
    definition, alone = unrolled(CONFIGS["t5"]), unrolled(cfg)
    params, read = random_params(definition), ids(2, S, 1)
    encoded = definition.bind(params).encode(read, runtime=PLAIN, all_layers=True)
    own = {"embed": params["embed"], **params["encoder"]}
    hidden = alone.bind(own).hidden(read, runtime=PLAIN, all_layers=True)
    np.testing.assert_allclose(encoded.x_bsd, hidden.x_btd, atol=SIMPLE)
    assert encoded.layers is not None and hidden.layers is not None
    for a, b in zip(encoded.layers, hidden.layers, strict=True):
        np.testing.assert_allclose(a, b, atol=SIMPLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "parallel"}, "model.block='parallel' does not go with"),
        ({"token_types": 2}, "model.token_types=2 does not go with"),
        ({"classifier": Classifier(("a", "b"))}, "model.classifier.labels"),
        ({"causal": False}, "set model.causal=True"),
    ],
)
def test_what_does_not_go_with_an_encoder(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BASE.replace(**change)


def test_what_is_missing_is_said() -> None:
    definition, alone = unrolled(BASE), unrolled(BASE.replace(encoder=Encoder()))
    model, single = definition.bind(definition.shapes), alone.bind(alone.shapes)
    tokens = ids(1, 3, 0)
    with pytest.raises(ValueError, match="either encoded= or cache.cross"):
        model.hidden(tokens, runtime=PLAIN)
    with pytest.raises(ConfigError, match="has no encoder"):
        single.encode(tokens, runtime=PLAIN)
    with pytest.raises(ValueError, match="without an encoder"):
        empty_cache(alone, 1, 4, encoder_slots=4)
    with pytest.raises(ValueError, match="prefix_bt is for models with prefix_lm"):
        single.hidden(tokens, prefix_bt=tokens, runtime=PLAIN)
