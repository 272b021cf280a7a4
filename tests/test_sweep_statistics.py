"""Means over seeds, their intervals and tests: against scipy, by brute force, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from llmasos_jax.sweep.report.statistics import compare, holm, paired, summarize, welch


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("count", [2, 3, 8, 40])
def test_the_interval_is_scipys(rng, count):
    values = rng.normal(3.0, 0.2, count)
    found = summarize(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert found.count == count
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert found.mean - found.half_width == pytest.approx(low, rel=1e-10)
    assert found.mean + found.half_width == pytest.approx(high, rel=1e-10)


def test_one_seed_has_no_interval_and_no_test():
    found = summarize([2.5])
    assert (found.mean, found.deviation, found.half_width) == (2.5, None, None)
    assert compare({0: 2.5}, {0: 2.6, 1: 2.7}) is None
    assert compare({0: 2.6, 1: 2.7}, {0: 2.5}) is None


@pytest.mark.parametrize("count", [2, 4, 9])
def test_the_paired_test_is_scipys(rng, count):
    a = rng.normal(3.0, 0.2, count)
    b = a + rng.normal(0.05, 0.1, count)
    found, expected = paired(a.tolist(), b.tolist()), stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    assert found.kind == "paired" and found.degrees == expected.df == count - 1
    assert found.difference == pytest.approx((a - b).mean(), rel=1e-9)
    assert found.t == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.difference - found.half_width == pytest.approx(low, rel=1e-9)
    assert found.difference + found.half_width == pytest.approx(high, rel=1e-9)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (3, 8), (10, 4)])
def test_welchs_test_is_scipys(rng, first, second):
    a, b = rng.normal(3.0, 0.5, first), rng.normal(3.2, 0.05, second)
    found, expected = welch(a.tolist(), b.tolist()), stats.ttest_ind(a, b, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert found.kind == "welch"
    assert found.degrees == pytest.approx(expected.df, rel=1e-9)
    assert found.t == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.difference - found.half_width == pytest.approx(low, rel=1e-9)
    assert found.difference + found.half_width == pytest.approx(high, rel=1e-9)


def test_seeds_say_which_test_it_is(rng):
    values = dict(enumerate(rng.normal(3.0, 0.2, 4).tolist()))
    moved = {seed: value + 0.1 + 0.01 * seed for seed, value in values.items()}
    backwards = dict(reversed(moved.items()))
    same, turned = compare(moved, values), compare(backwards, values)
    assert same.kind == "paired" and same.difference == pytest.approx(0.115)
    # Pairs are by seed, in whatever order they come.
    assert (turned.kind, turned.p) == ("paired", pytest.approx(same.p, rel=1e-12))
    other = compare({seed + 1: value for seed, value in moved.items()}, values)
    assert other.kind == "welch" and other.p > 10 * same.p
    assert compare({0: moved[0], 1: moved[1]}, values).kind == "welch"


def test_no_spread_at_all():
    same = paired([1.0, 2.0], [1.0, 2.0])
    assert (same.difference, same.t, same.p, same.half_width) == (0.0, 0.0, 1.0, 0.0)
    moved = paired([1.0, 2.0], [2.0, 3.0])
    assert (moved.difference, moved.t, moved.p) == (-1.0, -math.inf, 0.0)
    assert welch([1.0, 1.0], [1.0, 1.0, 1.0]).p == 1.0


def test_holm_is_the_closed_test_of_bonferroni(rng):
    """Of each hypothesis the largest Bonferroni p of all intersections that it is in."""
    for count in (1, 2, 5, 7):
        ps = rng.uniform(0, 0.4, count).tolist()
        sets = [s for n in range(1, count + 1) for s in itertools.combinations(range(count), n)]
        closed = [
            max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets if i in s)
            for i in range(count)
        ]
        assert holm(ps) == pytest.approx(closed, rel=1e-12)
    assert holm([]) == []


def test_intervals_hold_the_true_mean_as_often_as_they_say(rng):
    draws, times = rng.normal(2.0, 0.3, (4000, 4)), 4000
    found = [summarize(values) for values in draws.tolist()]
    held = sum(abs(s.mean - 2.0) <= s.half_width for s in found) / times
    assert held == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / times))


def test_tests_err_as_often_as_they_say_and_pairs_see_more(rng):
    times, seeds = 3000, 5
    shared = rng.normal(0, 0.2, (times, seeds))
    noise = rng.normal(0, 0.05, (2, times, seeds))
    a, b = (shared + noise[0]).tolist(), (shared + noise[1]).tolist()
    apart = rng.normal(0, 0.2, (times, seeds)).tolist()
    bound = 4 * math.sqrt(0.05 * 0.95 / times)
    errs = lambda tests: sum(test.p < 0.05 for test in tests) / times
    assert errs(paired(x, y) for x, y in zip(a, b, strict=True)) == pytest.approx(0.05, abs=bound)
    # Pairs that share nothing: still right.
    independent = errs(paired(x, y) for x, y in zip(a, apart, strict=True))
    assert independent == pytest.approx(0.05, abs=bound)
    assert errs(welch(x, y) for x, y in zip(a, apart, strict=True)) < 0.05 + bound
    # A true difference of half a seed's deviation is seen by pairs, hardly without them.
    moved = [[value + 0.1 for value in values] for values in b]
    seen = errs(paired(x, y) for x, y in zip(a, moved, strict=True))
    missed = errs(welch(x, y) for x, y in zip(a, moved, strict=True))
    assert seen > 0.6 and missed < 0.2


def test_all_tests_of_a_sweep_err_together_as_seldom_as_one(rng):
    times, settings, seeds = 1500, 6, 4
    values = rng.normal(0, 1, (times, settings + 1, seeds)).tolist()
    erred = sum(
        min(holm([paired(row, baseline).p for row in rows])) < 0.05 for baseline, *rows in values
    )
    assert erred / times < 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)
    plain = sum(min(paired(row, base).p for row in rows) < 0.05 for base, *rows in values)
    assert plain / times > 0.12  # what would happen without it
