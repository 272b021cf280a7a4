"""Experts against float64 NumPy that goes token by token; what drops, and what changes nothing."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import SIMPLE

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.definition import turned
from llmasos_jax.nn.experts import assign, dot_experts
from llmasos_jax.nn.moe import MoE
from llmasos_jax.nn.runtime import Runtime, dot_out_first

D, E, F = 6, 8, 10
B, T = 2, 40  # more choices than go one by one on a CPU
PLAIN = Runtime()
# Compiling is most of the time here, and tiny programs need no optimising.
QUICK = {"xla_backend_optimization_level": 0}
BASE = Experts(count=E, per_token=3, ffn_dim=F)
VARIANTS = {
    "softmax": BASE,
    "softmax, not normalised, scaled": Experts(E, 2, F, normalize=False, scale=2.5),
    "softmax of the chosen": Experts(E, 2, F, router="softmax_chosen"),
    "groups by their best": Experts(E, 3, F, groups=4, groups_per_token=2, normalize=False),
    "sigmoid, bias, groups by two": Experts(
        *(E, 4, F, (), "sigmoid", True, 1.8, True, 4, 2, "top2", 12)
    ),
    "shared with a gate": Experts(E, 1, F, shared_ffn_dim=14, shared_gate=True),
    "all of them": Experts(E, E, F),
}


def build(experts: Experts, mlp: str = "swiglu", seed: int = 0) -> MoE:
    """A layer whose weights are all random, none near zero."""
    moe = MoE(ModelConfig(16, D, 1, num_heads=1, mlp=mlp, ffn_dim=99, experts=experts))
    rng = np.random.default_rng(seed)
    parts = [moe] if moe.shared is None else [moe, moe.shared]
    for part in parts:
        for name in ("router", "router_bias", "gate", "up", "down", "shared_gate"):
            param = getattr(part, name, None)
            if param is not None and name != "shared":
                param[...] = jnp.asarray(rng.normal(size=param.shape), jnp.float32)
    return moe


def tokens(seed: int = 1, shape: tuple[int, ...] = (B, T, D)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(moe: MoE, x: np.ndarray, runtime: Runtime = PLAIN, counted=None):
    """Result and routing; every token counts unless told otherwise."""
    counted = everywhere(x) if counted is None else jnp.asarray(counted)
    call = jax.jit(lambda x, counted: moe(x, counted, runtime), compiler_options=QUICK)
    return call(jnp.asarray(x), counted)


def everywhere(x: np.ndarray) -> jax.Array:
    return jnp.ones(x.shape[:2], bool)


def array(param) -> np.ndarray:
    return np.asarray(param[...], np.float64)


def expected_weights(experts: Experts, logits: np.ndarray, bias: np.ndarray) -> dict[int, float]:
    """Weight of each chosen expert, for one token."""
    soft = np.exp(logits - logits.max())
    scores = 1 / (1 + np.exp(-logits)) if experts.router == "sigmoid" else soft / soft.sum()
    ranked = scores + bias
    size = experts.count // experts.groups
    groups = [ranked[i * size : (i + 1) * size] for i in range(experts.groups)]
    best_of = {"max": max, "top2": lambda group: sum(sorted(group)[-2:])}[experts.group_score]
    order = sorted(range(experts.groups), key=lambda g: -best_of(groups[g]))
    open_groups = order[: experts.groups_per_token] if experts.groups > 1 else [0]
    allowed = [e for e in range(experts.count) if e // size in open_groups]
    chosen = sorted(allowed, key=lambda e: -ranked[e])[: experts.per_token]
    if experts.router == "softmax_chosen" or experts.normalize:
        total = sum(scores[e] for e in chosen)
        return {e: experts.scale * scores[e] / total for e in chosen}
    return {e: experts.scale * scores[e] for e in chosen}


def expert(part, x: np.ndarray, number: int | None, act=None) -> np.ndarray:
    pick = lambda w: array(w) if number is None else array(w)[number]
    up = x @ pick(part.up)
    if part.gate is None:
        return np.maximum(up, 0) @ pick(part.down)
    gate = x @ pick(part.gate)
    return (gate / (1 + np.exp(-gate)) * up) @ pick(part.down)


def reference(moe: MoE, x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x, np.float64)
    bias = np.zeros(E) if moe.router_bias is None else array(moe.router_bias)
    for place in np.ndindex(x.shape[:2]):
        token = x[place].astype(np.float64)
        for e, weight in expected_weights(moe.experts, token @ array(moe.router), bias).items():
            out[place] += weight * expert(moe, token, e)
        if moe.shared is not None:
            gate = 1.0
            if moe.shared_gate is not None:
                gate = 1 / (1 + np.exp(-(token @ array(moe.shared_gate))))
            out[place] += gate * expert(moe.shared, token, None)
    return out


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("name", VARIANTS)
def test_each_router_equals_a_loop_over_tokens(name: str, platform: str) -> None:
    moe, x = build(VARIANTS[name]), tokens()
    y, _ = run(moe, x, Runtime(platform=platform))
    wanted = reference(moe, x)
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(y, wanted, rtol=SIMPLE, atol=SIMPLE * np.abs(wanted).max())


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 40)])
@pytest.mark.parametrize("mlp", ["swiglu", "relu"])
def test_weights_with_output_axes_first_give_the_same(mlp: str, shape: tuple[int, int]) -> None:
    experts = Experts(E, 2, F, shared_ffn_dim=5)
    plain, moe = build(experts, mlp), build(experts, mlp)
    for part, lead in ((moe, 1), (moe.shared, 0)):
        for name in ("gate", "up", "down"):
            if (param := getattr(part, name)) is not None:
                param.set_value(turned(param[...], 1, lead))
    moe.router.set_value(turned(moe.router[...], 1))
    runtime = Runtime(product=dot_out_first, expert_product=partial(dot_experts, out_first=True))
    x = tokens(shape=(*shape, D))
    wanted = reference(plain, x)
    y, _ = run(moe, x, runtime)
    np.testing.assert_allclose(y, wanted, rtol=SIMPLE, atol=SIMPLE * np.abs(wanted).max())


def test_turned_back_is_the_same_weight() -> None:
    w = tokens(shape=(3, 4, 5))
    np.testing.assert_array_equal(turned(turned(w, 1, 1), 1, 1, back=True), w)
    np.testing.assert_array_equal(turned(w, 1, 1)[2], w[2].T)


def test_no_token_depends_on_another() -> None:
    moe, x = build(BASE), tokens()
    alone = lambda x: np.asarray(run(moe, x)[0])
    whole = alone(x)
    np.testing.assert_allclose(alone(x[:1, 7:8]), whole[:1, 7:8], rtol=SIMPLE, atol=SIMPLE)
    # All others go where this token goes, and crowd its experts.
    crowd = np.broadcast_to(x[:1, 7:8], x.shape).copy()
    np.testing.assert_allclose(alone(crowd)[:1, 7:8], whole[:1, 7:8], rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_gradients_equal_those_of_all_experts_for_all_tokens(platform: str) -> None:
    experts = Experts(4, 2, F, shared_ffn_dim=7, shared_gate=True)
    moe, x = build(experts), jnp.asarray(tokens(shape=(2, 30, D)))
    names = ("router", "gate", "up", "down")

    def ours(weights: tuple, x: jax.Array) -> jax.Array:
        layer = nnx.clone(moe)
        for name, w in zip(names, weights, strict=True):
            getattr(layer, name).set_value(w)
        return jnp.sum(layer(x, everywhere(x), Runtime(platform=platform))[0] ** 3)

    def theirs(weights: tuple, x: jax.Array) -> jax.Array:
        router, gate, up, down = weights
        scores = jax.nn.softmax(x @ router)
        kept = jnp.where(scores >= jnp.sort(scores)[..., -2, None], scores, 0)
        kept = kept / kept.sum(-1, keepdims=True)
        each = jnp.einsum("btd,edf->btef", x, gate)
        each = jax.nn.silu(each) * jnp.einsum("btd,edf->btef", x, up)
        y = jnp.einsum("btef,efd,bte->btd", each, down, kept)
        y += jax.nn.sigmoid(x @ moe.shared_gate[...]) * moe.shared(x, Runtime())
        return jnp.sum(y**3)

    weights = tuple(getattr(moe, name)[...] for name in names)
    found, wanted = (
        jax.jit(jax.grad(fn, argnums=(0, 1)), compiler_options=QUICK)(weights, x)
        for fn in (ours, theirs)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(a - b) <= SIMPLE * np.linalg.norm(b)


def test_rows_are_sorted_into_blocks_of_one_expert() -> None:
    chosen = np.random.default_rng(3).integers(0, 5, (90, 2)).astype(np.int32)
    chosen[chosen == 3] = 1  # nobody chooses 3
    made = assign(jnp.asarray(chosen), 5, "cpu")
    token, row, expert_g = (np.asarray(a) for a in (made.token_r, made.row_ak, made.expert_g))
    block = len(token) // len(expert_g)
    assert len(np.unique(row)) == row.size
    np.testing.assert_array_equal(token[row], np.arange(90)[:, None] + np.zeros((90, 2), int))
    np.testing.assert_array_equal(expert_g[row // block], chosen)
    assert (token == 90).sum() == len(token) - row.size
    assert (np.diff(expert_g) >= 0).all()


def test_a_capacity_drops_later_tokens_of_each_sequence() -> None:
    experts = Experts(4, 1, F, normalize=False)
    moe, x = build(experts), tokens(shape=(2, 12, D))
    capacity = 0.5
    runtime = Runtime(expert_capacity=capacity)
    whole, sums = run(moe, x)
    y, dropped = run(moe, x, runtime)
    chosen = (x.astype(np.float64) @ array(moe.router)).argmax(-1)
    limit = math.ceil(capacity * 12 / 4)
    kept = np.zeros((2, 12), bool)
    for row in range(2):
        for e in range(4):
            kept[row, np.flatnonzero(chosen[row] == e)[:limit]] = True
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(y[kept], whole[kept], rtol=SIMPLE, atol=SIMPLE)
    np.testing.assert_array_equal(np.asarray(y)[~kept], 0.0)
    assert float(dropped.dropped) == (~kept).sum() and float(sums.dropped) == 0
    # A row is dropped by itself, and padding takes nobody's place.
    alone, _ = run(moe, x[1:], runtime)
    np.testing.assert_allclose(alone, y[1:], rtol=SIMPLE, atol=SIMPLE)
    padded = np.concatenate([np.repeat(x[:, :1], 12, axis=1), x], axis=1)
    counted = jnp.arange(24)[None] + jnp.zeros((2, 1), int) >= 12
    half, _ = run(moe, padded, Runtime(expert_capacity=capacity / 2), counted)
    np.testing.assert_allclose(half[:, 12:], y, rtol=SIMPLE, atol=SIMPLE)


def test_routing_sums_over_the_tokens_that_count() -> None:
    moe, x = build(VARIANTS["groups by their best"]), tokens()
    counted = np.random.default_rng(2).random((B, T)) < 0.6
    _, sums = run(moe, x, PLAIN, counted)
    logits = x[counted].astype(np.float64) @ array(moe.router)
    soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = [expected_weights(moe.experts, row, np.zeros(E)) for row in logits]
    counts = [sum(e in row for row in chosen) for e in range(E)]
    np.testing.assert_array_equal(sums.chosen_e, counts)
    np.testing.assert_allclose(sums.share_e, soft.sum(0), rtol=SIMPLE)
    np.testing.assert_allclose(sums.z, (np.log(np.exp(logits).sum(-1)) ** 2).sum(), rtol=SIMPLE)
    assert float(sums.tokens) == counted.sum()


def test_the_router_is_float32_where_products_are_not() -> None:
    moe, x = build(BASE), tokens()
    runtime = Runtime(dtype=jnp.bfloat16, act_dtype=jnp.bfloat16)
    y, sums = run(moe, x, runtime)
    _, wanted = run(moe, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(sums.share_e, wanted.share_e)
