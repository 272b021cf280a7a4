"""Sampling: what can be drawn (against NumPy), how often (chi-square), and from which noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate import sampling
from llmasos_jax.generate.sampling import Sampling, Seen, draw, filter_logits, sampling_rows

V = 24
draw_jit = jax.jit(draw)
filter_jit = jax.jit(filter_logits)


def nothing_seen(b: int = 1, v: int = V) -> Seen:
    return Seen(jnp.zeros((b, v), bool), jnp.zeros((b, v), jnp.int32))


def prompts_of(prompt_bv) -> Seen:
    return Seen(jnp.asarray(prompt_bv), jnp.zeros(np.shape(prompt_bv), jnp.int32))


def numpy_support(logits, s: Sampling) -> set[int]:
    """An independent version, by sorting, in float64."""
    x = logits.astype(np.float64) / s.temperature
    kept = set(range(len(x)))
    if s.top_k is not None:
        border = np.sort(x)[::-1][min(s.top_k, len(x)) - 1]
        kept = {i for i in kept if x[i] >= border}
    if s.top_p is not None and s.top_p < 1:
        p = {i: np.exp(x[i] - x.max()) for i in kept}
        total = sum(p.values())
        kept = {i for i in kept if sum(p[j] for j in p if x[j] > x[i]) / total < s.top_p}
    if s.min_p:
        kept = {i for i in kept if np.exp(x[i] - x.max()) >= s.min_p}
    return kept


def support(logits, s: Sampling) -> set[int]:
    kept = np.asarray(filter_jit(jnp.asarray(logits, jnp.float32)[None], sampling_rows([s])))[0]
    return set(np.flatnonzero(kept > -np.inf).tolist())


# Logits on a grid of 1/8, so that ties happen and borders lie away from rounding.
grid_logits = st.lists(st.integers(-40, 40), min_size=V, max_size=V).map(
    lambda v: np.array(v, np.float32) / 8
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    logits=grid_logits,
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, V + 3),
    top_p=st.none() | st.floats(0.013, 0.987),
    min_p=st.none() | st.floats(0.0013, 0.997),
)
def test_support_equals_numpy(logits, temperature, top_k, top_p, min_p):
    s = Sampling(temperature, top_k, top_p, min_p)
    assert support(logits, s) == numpy_support(logits, s)


def test_filters_see_the_temperature_and_each_other_in_order():
    # p = [.5, .25, .125, ...]: top-p of the renormalised top-2 (2/3, 1/3) keeps one token at 0.6,
    # two at 0.7.
    logits = np.log(0.5) * np.arange(V)
    assert support(logits, Sampling(top_p=0.6)) == {0, 1}
    assert support(logits, Sampling(top_k=2, top_p=0.6)) == {0}
    assert support(logits, Sampling(top_k=2, top_p=0.7)) == {0, 1}
    assert support(logits, Sampling(temperature=0.5, top_p=0.7)) == {0}  # .75 after the temperature
    assert support(logits, Sampling(min_p=0.2)) == {0, 1, 2}
    assert support(logits, Sampling(top_p=1.0)) == set(range(V))


def test_equal_logits_stay_together_and_zeros_of_both_signs_are_equal():
    logits = np.array([0.0, -0.0, 0.0, -1.0] + [-9.0] * (V - 4))
    assert support(logits, Sampling(top_k=1)) == {0, 1, 2}
    assert support(logits, Sampling(top_p=0.01)) == {0, 1, 2}


def test_top_k_one_equals_greedy(key):
    logits = jax.random.normal(key, (64, V))
    seen, positions = nothing_seen(64), jnp.arange(64)
    one = draw_jit(
        logits,
        seen,
        positions,
        sampling_rows([Sampling(top_k=1, seed=3, index=i) for i in range(64)]),
    )
    greedy = draw_jit(logits, seen, positions, sampling_rows([Sampling(temperature=0)] * 64))
    np.testing.assert_array_equal(one, np.argmax(np.asarray(logits), axis=1))
    np.testing.assert_array_equal(one, greedy)


@pytest.mark.parametrize(
    "s",
    [Sampling(), Sampling(0.7), Sampling(top_k=5), Sampling(top_p=0.8), Sampling(1.5, min_p=0.1)],
    ids=str,
)
def test_frequencies_by_chi_square(key, s):
    from scipy.stats import chisquare

    logits = np.asarray(jax.random.normal(key, (V,))) * 1.5
    num = 16_000
    rows = sampling_rows([Sampling(s.temperature, s.top_k, s.top_p, s.min_p, seed=7)] * num)
    drawn = draw_jit(jnp.tile(logits, (num, 1)), nothing_seen(num), jnp.arange(num), rows)
    kept = sorted(numpy_support(logits, s))
    p = np.exp(logits[kept].astype(np.float64) / s.temperature)
    counts = np.bincount(np.asarray(drawn), minlength=V)
    assert counts.sum() == counts[kept].sum() == num
    assert chisquare(counts[kept], num * p / p.sum()).pvalue > 1e-3


def test_noise_depends_on_seed_index_and_position_alone():
    logits = jnp.zeros((4, 999))
    seen = nothing_seen(4, 999)

    def run(samplings, positions):
        return np.asarray(
            draw_jit(logits, seen, jnp.array(positions), sampling_rows(samplings))
        ).tolist()

    base = [Sampling(seed=5, index=i) for i in range(4)]
    first = run(base, [3, 3, 3, 3])
    assert len(set(first)) == 4
    # Other rows, other places in the batch: the same token.
    assert run([base[2], Sampling(0), Sampling(top_p=0.5), base[0]], [3, 3, 3, 3])[::3] == [
        first[2],
        first[0],
    ]
    assert run(base, [4, 3, 3, 3])[0] != first[0]
    assert run([Sampling(seed=6, index=i) for i in range(4)], [3, 3, 3, 3]) != first


def test_repetition_penalty_as_in_ctrl():
    logits = np.linspace(-2, 2, V, dtype=np.float32)[None]
    seen = np.zeros((1, V), bool)
    seen[0, [0, V - 1]] = True
    got = np.asarray(sampling.penalise_seen(logits, seen, jnp.array([4.0])))[0]
    assert got[0] == -8.0 and got[-1] == 0.5
    np.testing.assert_array_equal(got[1:-1], logits[0, 1:-1])
    # It acts in greedy decoding too.
    rows = sampling_rows([Sampling(temperature=0, repetition_penalty=4.0)])
    assert int(draw_jit(jnp.asarray(logits), prompts_of(seen), jnp.array([0]), rows)[0]) == V - 2


def test_a_greedy_row_is_greedy_beside_a_sampled_one(key):
    logits = jnp.tile(jax.random.normal(key, (1, V)), (2, 1))
    rows = sampling_rows([Sampling(0), Sampling(50.0)])
    best = int(np.argmax(np.asarray(logits)[0]))
    drawn = [draw_jit(logits, nothing_seen(2), jnp.full((2,), i), rows) for i in range(20)]
    assert {int(d[0]) for d in drawn} == {best}
    assert len({int(d[1]) for d in drawn}) > 5


def test_tiny_temperature_does_not_overflow():
    logits = jnp.array([[1e4, 1e4 - 1, -1e4] + [0.0] * (V - 3)])
    rows = sampling_rows([Sampling(1e-30, top_p=0.9, min_p=0.1)])
    assert int(draw_jit(logits, nothing_seen(), jnp.array([0]), rows)[0]) == 0


def test_logits_that_are_not_numbers_give_no_token():
    for s in (Sampling(0), Sampling(1.0, top_k=3, top_p=0.5)):
        drawn = draw_jit(
            jnp.full((1, V), jnp.nan), nothing_seen(), jnp.array([0]), sampling_rows([s])
        )
        assert int(drawn[0]) == V


def test_other_options_compile_nothing(key):
    logits, seen, positions = jax.random.normal(key, (1, V)), nothing_seen(), jnp.array([0])
    draw_here = jax.jit(lambda *a: draw(*a))
    for s in (Sampling(0), Sampling(1.0), Sampling(0.5, 3, 0.5, 0.1, 1.2, 9, 4)):
        draw_here(logits, seen, positions, sampling_rows([s]))
    assert draw_here._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(temperature=-1), ["temperature=-1", "at least 0"]),
        (dict(temperature=float("nan")), ["temperature=nan"]),
        (dict(temperature="hot"), ["temperature='hot'", "number"]),
        (dict(top_k=0), ["top_k=0", "at least 1"]),
        (dict(top_k=2.5), ["top_k=2.5", "whole"]),
        (dict(top_p=2), ["top_p=2", "at most 1"]),
        (dict(top_p=0.0), ["top_p=0.0", "above 0"]),
        (dict(min_p=1.5), ["min_p=1.5", "at most 1"]),
        (dict(repetition_penalty=0), ["repetition_penalty=0", "above 0"]),
        (dict(seed=-1), ["seed=-1"]),
        (dict(seed=2**32), ["seed=", "4294967295"]),
    ],
    ids=str,
)
def test_options_out_of_range(options, words):
    with pytest.raises(GenerationError) as caught:
        Sampling(**options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("options", [dict(top_p=1e-50), dict(repetition_penalty=1e39)])
def test_a_number_that_float32_cannot_hold_is_refused(options):
    with pytest.raises(GenerationError, match=next(iter(options))):
        Sampling(**options)
