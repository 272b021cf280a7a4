"""Layouts: the same model, however its layers are stored."""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.count import count_parameters
from llmasos_jax.models.definition import ModelDef, empty_cache, file_def, init_params, relayout
from llmasos_jax.models.layout import Layout, layer_specs, scan_layout, unrolled_layout
from llmasos_jax.nn.runtime import Runtime

W = 3
CFG = ModelConfig(
    vocab_size=24,
    embedding_dim=16,
    num_layers=7,
    context_length=16,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=24,
    norm="layernorm",
    norm_unit_offset=True,
    qkv_bias=True,
    qk_norm="head",
    attention_windows=(None, None, W, None, W, None, W),
    tie_embeddings=False,
)
LAYOUTS = [
    scan_layout(CFG),
    unrolled_layout(CFG),
    Layout(prefix=3, period=2, count=2, suffix=0),
    Layout(prefix=1, period=2, count=2, suffix=2),
]


@pytest.mark.parametrize(
    ("num_layers", "windows", "expected"),
    [
        (1, (None,), Layout(1, 0, 0, 0)),
        (2, (None,), Layout(0, 1, 2, 0)),
        (96, (None,), Layout(0, 1, 96, 0)),
        (26, (W, None), Layout(0, 2, 13, 0)),  # Gemma 2
        (26, (W, W, W, W, W, None), Layout(0, 6, 4, 2)),  # Gemma 3
        (7, (None, None, W, None, W, None, W), Layout(1, 2, 3, 0)),
        (5, (None, W, W, W, W), Layout(1, 1, 4, 0)),
        (3, (None, W, 2 * W), Layout(3, 0, 0, 0)),
    ],
)
def test_the_smallest_period_is_found(num_layers: int, windows: tuple, expected: Layout) -> None:
    cfg = dataclasses.replace(CFG, num_layers=num_layers, attention_windows=windows)
    assert scan_layout(cfg) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_has_one_place_and_its_window(layout: Layout) -> None:
    places = [layout.place_of(layer) for layer in range(layout.num_layers)]
    assert len(set(places)) == layout.num_layers == CFG.num_layers
    windows: dict[tuple[str, int], int | None] = {}
    for (part, name, _), spec in zip(places, layer_specs(CFG), strict=True):
        assert windows.setdefault((part, name), spec.window) == spec.window


@pytest.fixture(scope="module")
def weights() -> list[Any]:
    """The weights of CFG in each layout, drawn there; the first in one compiled program."""
    draw = lambda layout, key: init_params(ModelDef(CFG, layout), key, std=0.5)
    first, *others = LAYOUTS
    key = jax.random.key(3)
    return [jax.jit(draw, static_argnums=0)(first, key), *(draw(layout, key) for layout in others)]


def assert_identical(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_initial_weights_do_not_depend_on_the_layout(weights: list[Any]) -> None:
    for layout, params in zip(LAYOUTS, weights, strict=True):
        assert_identical(relayout(weights[0], LAYOUTS[0], layout), params)


def test_relayout_round_trips_bit_by_bit(weights: list[Any]) -> None:
    for layout, params in zip(LAYOUTS, weights, strict=True):
        there = relayout(params, layout, LAYOUTS[1])
        assert_identical(relayout(there, LAYOUTS[1], layout), params)


def test_initial_weights_have_the_deviation_asked_for(weights: list[Any]) -> None:
    params = weights[1]
    layer = params["prefix"]["4"]
    # 0.5 / sqrt(2 * 7 layers) for what writes into the residual stream.
    for w, std in [
        (params["embed"]["table"], 0.5),
        (params["head"]["w"], 0.5),
        (layer["attn"]["q"], 0.5),
        (layer["mlp"]["up"], 0.5),
        (layer["attn"]["o"], 0.5 / 14**0.5),
        (layer["mlp"]["down"], 0.5 / 14**0.5),
    ]:
        w = np.asarray(w)
        assert abs(w.std() / std - 1) < 5 / (2 * w.size) ** 0.5
        assert abs(w.mean() / std) < 5 / w.size**0.5
    assert not np.any(layer["attn"]["q_bias"]) and not np.any(layer["mlp_norm"]["scale"])
    assert not np.array_equal(layer["mlp"]["up"], params["prefix"]["5"]["mlp"]["up"])
    assert not np.array_equal(layer["mlp"]["up"], layer["mlp"]["gate"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_has_axes_an_init_and_a_contraction(layout: Layout) -> None:
    definition = ModelDef(CFG, layout)
    rows = 0

    def check(path: tuple, shape: Any, axes: tuple, init: str, num_in: int) -> None:
        nonlocal rows
        assert len(axes) == len(shape.shape) and shape.dtype == jnp.float32
        stacked = path[0].key == "periods"
        assert not stacked or (axes[0] == "layers" and shape.shape[0] == layout.count)
        assert num_in <= len(shape.shape) - stacked
        assert (num_in > 0) <= (init in ("normal", "residual"))
        rows += shape.size

    jax.tree_util.tree_map_with_path(
        check, definition.shapes, definition.axes, definition.inits, definition.contractions
    )
    assert rows == count_parameters(CFG)


def test_names_and_shapes_in_files() -> None:
    """A change of one of these names is a change of the format."""
    flat = jax.tree_util.tree_leaves_with_path(file_def(CFG).shapes)
    names = {".".join(str(k.key) for k in path): leaf.shape for path, leaf in flat}
    layer = {n.removeprefix("prefix.6."): s for n, s in names.items() if n.startswith("prefix.6.")}
    norm = {"scale": (16,), "bias": (16,)}
    assert layer == {
        **{f"attn_norm.{name}": shape for name, shape in norm.items()},
        **{f"mlp_norm.{name}": shape for name, shape in norm.items()},
        "attn.q": (16, 4, 4),
        "attn.k": (16, 2, 4),
        "attn.v": (16, 2, 4),
        "attn.o": (4, 4, 16),
        "attn.q_bias": (4, 4),
        "attn.k_bias": (2, 4),
        "attn.v_bias": (2, 4),
        "attn.q_norm.scale": (4,),
        "attn.k_norm.scale": (4,),
        "mlp.gate": (16, 24),
        "mlp.up": (16, 24),
        "mlp.down": (24, 16),
    }
    assert {n: s for n, s in names.items() if not n.startswith("prefix.")} == {
        "embed.table": (24, 16),
        "final_norm.scale": (16,),
        "final_norm.bias": (16,),
        "head.w": (16, 24),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_cache_has_the_layers_of_the_model(layout: Layout) -> None:
    definition = ModelDef(CFG, layout)
    cache = empty_cache(definition, 3, 5, jnp.bfloat16)
    assert {part: set(layers) for part, layers in cache.layers.items()} == {
        part: set(definition.shapes[part]) for part in cache.layers
    }
    arrays = jax.tree.leaves(cache.layers)
    assert sum(a.size for a in arrays) == 2 * CFG.num_layers * 3 * 5 * 2 * 4
    assert {a.dtype for a in arrays} == {jnp.dtype("bfloat16")}


def test_shapes_of_175_billion_parameters_take_no_memory_and_no_time() -> None:
    cfg = dataclasses.replace(
        CFG, vocab_size=50257, embedding_dim=12288, num_layers=96, num_heads=96, num_kv_heads=None
    )
    cfg = dataclasses.replace(cfg, ffn_dim=None, mlp="gelu", attention_windows=(None, 256))
    start = time.perf_counter()
    definition = ModelDef(cfg, scan_layout(cfg))
    params = jax.eval_shape(lambda: init_params(definition, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((8, 2048), jnp.int32)

    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        model = definition.bind(params)
        return model.logits(model.hidden(tokens, runtime=Runtime()).x_btd, Runtime())

    logits = jax.eval_shape(forward, params, tokens)
    assert time.perf_counter() - start < 10
    assert logits.shape == (8, 2048, 50257)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 174e9


def test_the_program_does_not_grow_with_depth() -> None:
    def program(num_layers: int) -> str:
        cfg = dataclasses.replace(CFG, num_layers=num_layers, attention_windows=(W, None))
        definition = ModelDef(cfg, scan_layout(cfg))

        def loss(params: Any) -> jax.Array:
            model = definition.bind(params)
            tokens = jnp.zeros((2, 8), jnp.int32)
            return model.logits(model.hidden(tokens, runtime=Runtime()).x_btd, Runtime()).sum()

        return jax.jit(jax.grad(loss)).lower(definition.shapes).as_text()

    shallow, deep = program(4), program(64)
    assert len(shallow.splitlines()) == len(deep.splitlines())


@pytest.mark.parametrize(
    ("field", "wrong", "nearest"),
    [("norm", "layernrm", "layernorm"), ("mlp", "geglu_tan", "geglu_tanh")],
)
def test_a_wrong_name_is_an_error_with_the_nearest(field: str, wrong: str, nearest: str) -> None:
    cfg = dataclasses.replace(CFG, **{field: wrong})
    with pytest.raises(ConfigError, match=f'model.{field}="{wrong}".*did you mean "{nearest}"'):
        _ = file_def(cfg).shapes


def test_more_than_ten_layers_run_in_their_order() -> None:
    """Named "0", "1", "10", "11", "2", ... as texts: a sorted tree must not decide the order."""
    cfg = ModelConfig(vocab_size=24, embedding_dim=16, num_layers=12, num_heads=2, ffn_dim=24)
    scanned, unrolled = scan_layout(cfg), unrolled_layout(cfg)
    params = init_params(ModelDef(cfg, scanned), jax.random.key(1), std=0.5)
    tokens_bt = jnp.arange(6, dtype=jnp.int32)[None]

    def logits(layout: Layout, params: Any) -> jax.Array:
        model = ModelDef(cfg, layout).bind(params)
        return model.logits(model.hidden(tokens_bt, runtime=Runtime()).x_btd, Runtime())

    one = jax.jit(partial(logits, scanned))(params)
    other = jax.jit(partial(logits, unrolled))(relayout(params, scanned, unrolled))
    assert float(jnp.abs(one).max()) > 0.1
    np.testing.assert_allclose(other, one, atol=SIMPLE)
