"""Optimizers against NumPy, and Optax on plain matrices; stacked layers move like unrolled ones."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import OptimConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.definition import ModelDef, relayout
from llmasos_jax.models.layout import scan_layout, unrolled_layout
from llmasos_jax.train.optim import TABLE, build_optimizer, like_params
from llmasos_jax.train.weights import Matrix, decay_mask, map_named, matrix

CFG = OptimConfig(
    learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.2, clip_norm=None
)
MODEL = ModelConfig(
    vocab_size=12,
    embedding_dim=8,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    ffn_dim=10,
    norm="layernorm",
    position="learned",
    context_length=16,
    qkv_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
    qk_norm="full",
    tie_embeddings=False,
)
TIED = MODEL.replace(tie_embeddings=True)
SCAN = ModelDef(MODEL, scan_layout(MODEL))
UNROLLED = ModelDef(MODEL, unrolled_layout(MODEL))


def random_like(shapes, key):
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(key, len(leaves))
    values = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, values)


def steps_of(cfg, params, gradients):
    """The updates of each step, the weights moving along."""
    optimizer = build_optimizer(cfg, 100)
    state, out = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        out.append(updates)
    return out


def gradients(definition, key, count=3):
    return [random_like(definition.shapes, k) for k in jax.random.split(key, count)]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_stacked_layers_move_like_unrolled_ones(key, name):
    cfg = dataclasses.replace(CFG, name=name, clip_norm=0.5)
    params, grads = random_like(SCAN.shapes, key), gradients(SCAN, key)
    unroll = lambda tree: relayout(tree, SCAN.layout, UNROLLED.layout)
    stacked = steps_of(cfg, params, grads)
    unrolled = steps_of(cfg, unroll(params), [unroll(g) for g in grads])
    for one, other in zip(stacked, unrolled, strict=True):
        chex.assert_trees_all_close(unroll(one), other, atol=SIMPLE, rtol=SIMPLE)


def one_weight(key, name="head", leaf="w", shape=(5, 7), count=4):
    keys = jax.random.split(key, count + 1)
    tree = lambda k: {name: {leaf: jax.random.normal(k, shape)}}
    return tree(keys[0]), [tree(k) for k in keys[1:]]


def numbers(trees):
    return [np.asarray(jax.tree.leaves(tree)[0], np.float64) for tree in trees]


def test_adamw_formula(key):
    params, grads = one_weight(key)
    (p,), m, v = numbers([params]), 0.0, 0.0
    got = numbers(steps_of(dataclasses.replace(CFG, eps=1e-3), params, grads))
    for t, (g, update) in enumerate(zip(numbers(grads), got, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        want = -0.1 * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3) + 0.2 * p)
        np.testing.assert_allclose(update, want, atol=PARITY)
        p = p + want


def test_lion_formula(key):
    params, grads = one_weight(key)
    (p,), m = numbers([params]), 0.0
    got = numbers(steps_of(dataclasses.replace(CFG, name="lion"), params, grads))
    for g, update in zip(numbers(grads), got, strict=True):
        want = -0.1 * (np.sign(0.9 * m + 0.1 * g) + 0.2 * p)
        m = 0.95 * m + 0.05 * g
        np.testing.assert_allclose(update, want, atol=PARITY)
        p = p + want


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_sgd_formula(key, momentum):
    params, grads = one_weight(key)
    (p,), m = numbers([params]), 0.0
    got = numbers(steps_of(dataclasses.replace(CFG, name="sgd", momentum=momentum), params, grads))
    for g, update in zip(numbers(grads), got, strict=True):
        m = momentum * m + g
        want = -0.1 * (m + 0.2 * p)
        np.testing.assert_allclose(update, want, atol=PARITY)
        p = p + want


@pytest.mark.parametrize("shape", [(5, 7), (9, 4)])
def test_adafactor_is_optax_on_a_matrix(key, shape):
    params, grads = one_weight(key, shape=shape)
    cfg = dataclasses.replace(CFG, name="adafactor", weight_decay=0.0)
    reference = optax.adafactor(0.1, min_dim_size_to_factor=1)
    state = reference.init(params)
    for g, update in zip(grads, steps_of(cfg, params, grads), strict=True):
        want, state = reference.update(g, state, params)
        chex.assert_trees_all_close(update, want, atol=PARITY, rtol=SIMPLE)
        params = optax.apply_updates(params, want)


def test_adafactor_factors_in_against_out(key):
    """As products see them: q [D, N, H] is one D x NH matrix, o [N, H, D] one NH x D matrix."""
    cfg = dataclasses.replace(CFG, name="adafactor", weight_decay=0.0)
    for leaf, shape, flat in (("q", (4, 3, 5), (4, 15)), ("o", (3, 5, 4), (15, 4))):
        params = {"prefix": {"0": {"attn": {leaf: jax.random.normal(key, shape)}}}}
        matrices = {"head": {"w": jax.tree.leaves(params)[0].reshape(flat)}}
        got = numbers(steps_of(cfg, params, [params, params]))
        want = numbers(steps_of(cfg, matrices, [matrices, matrices]))
        np.testing.assert_allclose([g.reshape(flat) for g in got], want, atol=PARITY)


def newton_schulz(x):
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if transposed else x


def test_muon_formula_on_a_stack(key):
    """Two stacked o [N, H, D]: each layer is one NH x D matrix of its own."""
    params = {"periods": {"0": {"attn": {"o": jax.random.normal(key, (2, 3, 5, 4))}}}}
    keys = jax.random.split(key, 3)
    grads = [jax.tree.map(lambda p, k=k: jax.random.normal(k, p.shape), params) for k in keys]
    cfg = dataclasses.replace(CFG, name="muon", momentum=0.8)
    (p,), m = numbers([params]), 0.0
    got = numbers(steps_of(cfg, params, grads))
    for t, (g, update) in enumerate(zip(numbers(grads), got, strict=True), start=1):
        m = 0.8 * m + 0.2 * g
        ahead = 0.8 * m / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)
        rows = [newton_schulz(layer.reshape(15, 4)).reshape(3, 5, 4) for layer in ahead]
        want = -0.1 * (0.2 * np.sqrt(15) * np.stack(rows) + 0.2 * p)
        np.testing.assert_allclose(update, want, atol=SIMPLE)
        p = p + want


def test_muon_takes_only_the_matrices_of_blocks(key):
    """Everything else moves as under AdamW."""
    params, grads = random_like(SCAN.shapes, key), gradients(SCAN, key)
    adam = steps_of(CFG, params, grads)[-1]
    muon = steps_of(dataclasses.replace(CFG, name="muon"), params, grads)[-1]
    same = map_named(lambda path, a, b: (path, bool(jnp.allclose(a, b, atol=PARITY))), adam, muon)
    differ = {p for p, is_same in _pairs(same) if not is_same}
    assert {path[-1] for path in differ} == {"q", "k", "v", "o", "gate", "up", "down"}
    assert all(path[0] == "periods" for path in differ)


def _pairs(tree):
    return jax.tree.leaves(tree, is_leaf=lambda n: isinstance(n, tuple))


def test_muon_updates_have_the_rms_of_adams(key):
    shapes = {"prefix": {"0": {"mlp": {"up": jax.ShapeDtypeStruct((64, 200), jnp.float32)}}}}
    params = random_like(shapes, key)
    cfg = dataclasses.replace(CFG, name="muon", learning_rate=1.0, weight_decay=0.0)
    (update,) = numbers(steps_of(cfg, params, [params]))
    assert 0.15 < np.sqrt((update**2).mean()) < 0.25


def decayed(model):
    mask = decay_mask(ModelDef(model, scan_layout(model)).shapes)
    found = map_named(lambda path, is_decayed: (path, is_decayed), mask)
    return {path[-1] for path, is_decayed in _pairs(found) if is_decayed}


def test_decay_goes_to_products_only():
    products = {"q", "k", "v", "o", "gate", "up", "down"}
    assert decayed(MODEL) == products | {"w"}
    assert decayed(TIED) == products | {"table"}


def test_decay_acts_where_the_mask_says(key):
    params = random_like(SCAN.shapes, key)
    zero = jax.tree.map(jnp.zeros_like, params)
    (updates,) = steps_of(dataclasses.replace(CFG, name="sgd"), params, [zero])
    want = jax.tree.map(lambda p, m: -0.1 * 0.2 * p * m, params, decay_mask(params))
    chex.assert_trees_all_close(updates, want, atol=PARITY)


def test_clipping_keeps_the_direction(key):
    params, grads = one_weight(key, count=1)
    cfg = dataclasses.replace(CFG, name="sgd", weight_decay=0.0, momentum=0.0, clip_norm=0.5)
    (got,), (g,) = numbers(steps_of(cfg, params, grads)), numbers(grads)
    np.testing.assert_allclose(got, -0.1 * 0.5 * g / np.linalg.norm(g), atol=PARITY)
    small = [jax.tree.map(lambda x: x * 1e-3, grads[0])]
    np.testing.assert_allclose(numbers(steps_of(cfg, params, small))[0], -1e-4 * g, atol=PARITY)


def test_the_schedule_moves_the_rate(key):
    params, grads = one_weight(key, count=3)
    cfg = dataclasses.replace(CFG, name="sgd", weight_decay=0.0, momentum=0.0, warmup_steps=2)
    got = numbers(steps_of(cfg, params, [grads[0]] * 3))
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=SIMPLE)
    np.testing.assert_allclose(got[2], got[1], rtol=SIMPLE)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_state_follows_the_weights(name):
    """Each moment that has a weight's shape gets that weight's value; the rest the default."""
    optimizer = build_optimizer(dataclasses.replace(CFG, name=name), 10)
    state = jax.eval_shape(optimizer.init, SCAN.shapes)
    names = map_named(lambda path, leaf: str(leaf.shape), SCAN.shapes)
    found = jax.tree.leaves(like_params(state, SCAN.shapes, names, default=""))
    known = [(str(leaf.shape), n) for leaf, n in zip(jax.tree.leaves(state), found, strict=True)]
    known = [(shape, want) for shape, want in known if want]
    moments = {"adamw": 2, "lion": 1, "sgd": 1, "muon": 1}.get(name, 0)
    assert all(shape == want for shape, want in known)
    assert len(known) >= moments * len(jax.tree.leaves(SCAN.shapes))


def test_matrices_by_name():
    assert matrix(("periods", "1", "attn", "q")) == Matrix((1,), (2, 3))
    assert matrix(("suffix", "1", "attn", "q")) == Matrix((0,), (1, 2))
    assert matrix(("periods", "1", "attn", "q_norm", "scale")) is None
    assert matrix(("embed", "positions")) is None
    assert matrix(("periods", "1", "moe", "up")) == Matrix((2,), (3,))
    assert matrix(("prefix", "1", "moe", "shared", "up")) == Matrix((0,), (1,))
    assert matrix(("prefix", "1", "moe", "router_bias")) is None
    with pytest.raises(ConfigError, match='the weight "periods.0.moe.other"'):
        matrix(("periods", "0", "moe", "other"))


def plain(cfg, schedule):
    return optax.chain(optax.scale_by_learning_rate(schedule))


def test_an_optimizer_from_outside(key):
    params, grads = one_weight(key, count=1)
    cfg = dataclasses.replace(CFG, name=f"{__name__}:plain")
    (got,), (g,) = numbers(steps_of(cfg, params, grads)), numbers(grads)
    np.testing.assert_allclose(got, -0.1 * g, atol=PARITY)
    with pytest.raises(ConfigError, match='optim.name="adam".*did you mean "adamw"'):
        build_optimizer(dataclasses.replace(CFG, name="adam"), 10)
    with pytest.raises(ConfigError, match="gives a bool"):
        build_optimizer(dataclasses.replace(CFG, name="operator:is_"), 10)
