"""Bias, penalties, typical-p and masks: against NumPy and transformers; rows know no neighbours."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.sampling import (
    MOST_BIASED,
    NO_ID,
    Sampling,
    Seen,
    change_logits,
    draw,
    filter_logits,
    log_probs,
    mask_logits,
    rows_with,
    sampling_rows,
    seen_in,
)

OPTIMIZED = True  # conftest.py: programs as users have them

B, V = 4, 1001  # no multiple of 32, nor of what a processor adds at once
draw_jit = jax.jit(draw)


@jax.jit
def scores(logits_bv, seen, rows):
    return filter_logits(change_logits(logits_bv, seen, rows), rows)


def packed(allowed_bv: np.ndarray, *, behind: int = 0) -> np.ndarray:
    """Bits, those behind the vocabulary as given."""
    b, v = allowed_bv.shape
    bits = np.full((b, -(-v // 32) * 32), behind, np.uint64)
    bits[:, :v] = allowed_bv
    places = np.uint64(1) << np.arange(32, dtype=np.uint64)
    return (bits.reshape(b, -1, 32) * places).sum(axis=2).astype(np.uint32)


def random_seen(rng: np.random.Generator, b: int, v: int) -> Seen:
    counts = rng.poisson(2, (b, v)) * (rng.random((b, v)) < 0.2)
    return Seen(jnp.asarray(rng.random((b, v)) < 0.1), jnp.asarray(counts, jnp.int32))


def random_sampling(rng: np.random.Generator, v: int) -> Sampling:
    """Each option asked for or not."""

    def maybe(value, off):
        return value if rng.random() < 0.5 else off

    ids = rng.choice(v, rng.integers(1, 20), replace=False).tolist()
    return Sampling(
        maybe(rng.uniform(0.3, 2), float(rng.integers(0, 2))),
        maybe(int(rng.integers(1, v)), None),
        maybe(rng.uniform(0.05, 1), None),
        maybe(rng.uniform(0, 0.2), None),
        maybe(rng.uniform(0.5, 2), 1.0),
        seed=int(rng.integers(2**32)),
        index=int(rng.integers(9)),
        typical_p=maybe(rng.uniform(0.05, 1), None),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        logit_bias=maybe(tuple((i, rng.uniform(-9, 9)) for i in ids), ()),
    )


def test_bias_and_penalties_equal_numpy():
    rng = np.random.default_rng(18)
    v = 50
    for _ in range(20):
        # On a grid whose numbers float32 holds: equal means equal.
        x = rng.integers(-40, 40, v) / 8
        biased = rng.choice(v, rng.integers(0, 9), replace=False)
        bias = rng.integers(-200, 201, biased.size) / 2
        penalty = float(rng.choice([0.5, 1.0, 2.0]))
        presence, frequency = rng.integers(-8, 9, 2) / 4
        prompt, count = rng.random(v) < 0.2, rng.poisson(1, v)
        s = Sampling(
            repetition_penalty=penalty,
            presence_penalty=presence,
            frequency_penalty=frequency,
            logit_bias=tuple(zip(biased.tolist(), bias.tolist(), strict=True)),
        )
        seen = Seen(jnp.asarray(prompt)[None], jnp.asarray(count, jnp.int32)[None])
        got = change_logits(jnp.asarray(x, jnp.float32)[None], seen, sampling_rows([s]))
        x[biased] += bias
        stands = prompt | (count > 0)
        x = np.where(stands, np.where(x > 0, x / penalty, x * penalty), x)
        x = x - presence * (count > 0) - frequency * count
        np.testing.assert_array_equal(got[0], x)


def test_a_penalty_of_counts_leaves_the_prompt_alone():
    seen = seen_in(jnp.array([[3, 5, 3, V]]), V).add(jnp.array([7])).add(jnp.array([7]))
    seen = seen.add(jnp.array([V]))  # no token: not counted
    assert np.flatnonzero(seen.prompt_bv[0]).tolist() == [3, 5]
    assert {i: int(seen.count_bv[0, i]) for i in np.flatnonzero(seen.count_bv[0])} == {7: 2}
    s = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    changed = np.asarray(change_logits(jnp.zeros((1, V)), seen, sampling_rows([s])))[0]
    assert changed[7] == -1.0 and np.flatnonzero(changed).tolist() == [7]


def typical_in_words(p: np.ndarray, mass: float) -> set[int]:
    """Definition of the paper: fewest tokens nearest to the entropy that reach the mass."""
    p = p / p.sum()
    information = -np.log(p)
    distance = np.abs(information - (p * information).sum())
    kept, total = set(), 0.0
    for token in np.argsort(distance, kind="stable"):
        if total >= mass:
            break
        kept.add(int(token))
        total += p[token]
    return kept


def test_typical_keeps_what_the_paper_says():
    rng = np.random.default_rng(4)
    left = 0
    for _ in range(50):
        p, mass = rng.dirichlet(np.full(60, 0.3)), rng.uniform(0.05, 0.99)
        x = jnp.asarray(np.log(p), jnp.float32)[None]
        rows = sampling_rows([Sampling(typical_p=mass)])
        kept = np.flatnonzero(
            np.asarray(scores(x, seen_in(x[:, :0].astype(int), 60), rows))[0] > -np.inf
        )
        assert set(kept.tolist()) == typical_in_words(p, mass)
        left += int(np.argmax(p)) not in kept
    assert left > 3, "the likeliest token can go"


def test_typical_one_keeps_all_and_equals_stay_together():
    def kept(p, mass):
        x = jnp.log(jnp.array([p]))
        rows = sampling_rows([Sampling(typical_p=mass)])
        row = scores(x, seen_in(jnp.zeros((1, 0), jnp.int32), len(p)), rows)[0]
        return np.flatnonzero(row > -np.inf).tolist()

    assert kept([0.25] * 4, 0.1) == [0, 1, 2, 3]
    assert kept([0.94, 0.02, 0.02, 0.02], 1.0) == [0, 1, 2, 3]
    assert kept([0.94, 0.02, 0.02, 0.02], 0.95) == [0, 1, 2, 3]
    assert kept([0.94, 0.02, 0.02, 0.02], 0.9) == [0]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_all_options_together_as_in_transformers():
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    # The order is its own, not a list of ours.
    order_of = transformers.GenerationMixin()
    order_of.config = transformers.GPT2Config()
    rng = np.random.default_rng(5230)
    v, most = 200, 0
    for _ in range(60):
        x = rng.normal(0, 3, v).astype(np.float32)
        prompt = rng.integers(0, v, 30)
        # Presence and frequency are not in transformers.
        s = dataclasses.replace(
            random_sampling(rng, v), temperature=rng.uniform(0.3, 2), frequency_penalty=0.0
        )
        s = dataclasses.replace(s, presence_penalty=0.0)
        config = transformers.GenerationConfig(
            do_sample=True,
            temperature=s.temperature,
            top_k=s.top_k or 0,
            top_p=s.top_p,
            min_p=s.min_p,
            typical_p=s.typical_p,
            repetition_penalty=s.repetition_penalty,
            sequence_bias=[[[i], bias] for i, bias in s.logit_bias] or None,
        )
        theirs = order_of._get_logits_processor(config, device="cpu")
        ids = torch.from_numpy(prompt)[None]
        wanted = theirs(ids, torch.from_numpy(x)[None]).softmax(dim=-1)[0].numpy()
        seen = seen_in(jnp.asarray(prompt, jnp.int32)[None], v)
        got = jax.nn.softmax(scores(jnp.asarray(x)[None], seen, sampling_rows([s])))[0]
        np.testing.assert_array_equal(np.asarray(got) > 0, wanted > 0)
        np.testing.assert_allclose(got, wanted, atol=PARITY)
        most = max(most, int((wanted > 0).sum()))
    assert most > v // 2


def test_a_row_knows_no_neighbour():
    rng = np.random.default_rng(7)
    plain = Sampling(0.0)
    for trial in range(60):
        logits = rng.normal(0, 3, (B, V)).astype(np.float32)
        seen, position = random_seen(rng, B, V), jnp.asarray(rng.integers(0, 999, B))
        allowed = rng.random((B, V)) < 0.8
        allowed[0] |= trial % 2 == 0
        samplings = [random_sampling(rng, V) for _ in range(B)]
        together = (jnp.asarray(logits), seen, position, sampling_rows(samplings))
        drawn = draw_jit(*together, jnp.asarray(packed(allowed)))
        kept = scores(*together[:2], together[3])
        # A row alone, at another place, beside rows that ask for nothing.
        row, place = rng.integers(0, B, 2)
        order = np.roll(np.arange(B), place - row)
        asked = [samplings[i] if i == row else plain for i in order]
        moved = jax.tree.map(lambda x, order=order: x[order], (jnp.asarray(logits), seen, position))
        alone = draw_jit(*moved, sampling_rows(asked), jnp.asarray(packed(allowed[order])))
        assert alone[place] == drawn[row] < V
        if samplings[row].temperature:
            bits = scores(*moved[:2], sampling_rows(asked))
            np.testing.assert_array_equal(
                np.asarray(bits[place]).view(np.uint32), np.asarray(kept[row]).view(np.uint32)
            )


@pytest.mark.parametrize("behind", [0, 1])
def test_a_mask_lets_nothing_else_come(behind):
    rng = np.random.default_rng(3)
    allowed = rng.random((B, V)) < 0.02
    logits = jnp.asarray(np.where(allowed, -50.0, 9.0) + rng.normal(0, 1, (B, V)), jnp.float32)
    bits, seen = jnp.asarray(packed(allowed, behind=behind)), seen_in(jnp.zeros((B, 0), int), V)
    np.testing.assert_array_equal(np.asarray(mask_logits(logits, bits)) > -np.inf, allowed)
    greedy = draw_jit(logits, seen, jnp.arange(B), sampling_rows([Sampling(0)] * B), bits)
    np.testing.assert_array_equal(greedy, np.where(allowed, logits, -np.inf).argmax(axis=1))
    loud = Sampling(9.0, top_k=3, logit_bias=((int(np.flatnonzero(~allowed[0])[0]), 100.0),))
    rows = sampling_rows([loud.at_index(i) for i in range(B)])
    for position in range(30):
        token_b = np.asarray(draw_jit(logits, seen, jnp.full(B, position), rows, bits))
        assert allowed[np.arange(B), token_b].all()


@pytest.mark.parametrize(
    "s", [Sampling(0), Sampling(1.0), Sampling(1.0, top_k=2, min_p=0.1)], ids=str
)
def test_a_mask_that_lets_nothing_come_gives_no_token(s):
    allowed = np.zeros((B, V), bool)
    allowed[1, 5] = True
    rows, seen = sampling_rows([s] * B), seen_in(jnp.zeros((B, 0), int), V)
    bits = jnp.asarray(packed(allowed, behind=1))
    drawn = draw_jit(jnp.zeros((B, V)), seen, jnp.arange(B), rows, bits)
    assert drawn.tolist() == [V, 5, V, V]


def test_no_token_beside_a_neighbour_that_asks_for_min_p():
    rows = sampling_rows([Sampling(1.0), Sampling(1.0, min_p=0.1, typical_p=0.5)])
    logits = jnp.stack([jnp.full(V, jnp.nan), jnp.zeros(V)])
    drawn = draw_jit(logits, seen_in(jnp.zeros((2, 0), int), V), jnp.zeros(2, int), rows)
    assert drawn[0] == V > drawn[1]


def test_frequencies_by_chi_square():
    from scipy.stats import chisquare

    num, v = 16_000, 24
    rng = np.random.default_rng(11)
    x, count = rng.normal(0, 1, v), rng.poisson(1, v)
    allowed = rng.random(v) < 0.8
    s = Sampling(
        0.8, seed=3, presence_penalty=0.4, frequency_penalty=-0.3, logit_bias=((2, 1.5), (9, -1.0))
    )
    seen = Seen(jnp.zeros((num, v), bool), jnp.tile(jnp.asarray(count, jnp.int32), (num, 1)))
    logits = jnp.tile(jnp.asarray(x, jnp.float32), (num, 1))
    bits = jnp.asarray(np.tile(packed(allowed[None]), (num, 1)))
    drawn = draw_jit(logits, seen, jnp.arange(num), sampling_rows([s] * num), bits)
    x[2], x[9] = x[2] + 1.5, x[9] - 1.0
    p = np.exp((x - 0.4 * (count > 0) + 0.3 * count) / 0.8) * allowed
    counts = np.bincount(np.asarray(drawn), minlength=v)
    assert counts.sum() == counts[allowed].sum() == num
    assert chisquare(counts[allowed], num * p[allowed] / p.sum()).pvalue > 1e-3


def test_log_probabilities_equal_numpy():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 4, (B, V))
    token = rng.integers(0, V, B)
    got, top, top_log_p = jax.jit(log_probs, static_argnums=2)(
        jnp.asarray(x, jnp.float32), jnp.asarray(token), 5
    )
    x = x.astype(np.float32).astype(np.float64)
    log_p = x - x.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(got, log_p[np.arange(B), token], rtol=PARITY, atol=PARITY)
    best = np.argsort(-x, axis=1)[:, :5]
    np.testing.assert_array_equal(top, best)
    best_log_p = np.take_along_axis(log_p, best, axis=1)
    np.testing.assert_allclose(top_log_p, best_log_p, rtol=PARITY, atol=PARITY)


def test_equals_among_the_likeliest_stand_by_id():
    x = jnp.array([[0.0, 1.0, -0.0, 1.0, 0.0, -9.0]])
    log_p, top, _ = log_probs(x, jnp.array([3]), 5)
    assert top[0].tolist() == [1, 3, 0, 2, 4]
    assert log_probs(x, jnp.array([3]), 0)[1].shape == (1, 0)
    assert float(log_p[0]) == float(log_probs(x, jnp.array([1]), 1)[2][0, 0])
    assert math.isnan(log_probs(x, jnp.array([6]), 1)[0][0])


def test_a_row_joins_a_batch_and_nothing_compiles_for_its_number():
    rng = np.random.default_rng(2)
    samplings = [random_sampling(rng, V) for _ in range(B)]
    put = jax.jit(lambda rows, row, one: rows_with(rows, row, one))
    rows = sampling_rows([Sampling(0.0)] * B)
    for i in (2, 0, 3, 1):
        rows = put(rows, jnp.int32(i), sampling_rows([samplings[i]]))
    assert put._cache_size() == 1
    for name, wanted in vars(sampling_rows(samplings)).items():
        got = getattr(rows, name)
        if name == "key_b":
            got, wanted = jax.random.key_data(got), jax.random.key_data(wanted)
        np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_shapes_do_not_depend_on_what_is_asked():
    rng = np.random.default_rng(6)
    rows = [sampling_rows([random_sampling(rng, V)]) for _ in range(9)]
    full = Sampling(logit_bias=tuple((i, 1.0) for i in range(MOST_BIASED)))
    shapes = {str(jax.tree.map(jnp.shape, r)) for r in [*rows, sampling_rows([full])]}
    assert len(shapes) == 1
    assert rows[0].bias_ids_bm.max() == NO_ID


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(typical_p=0), "typical_p=0 is not possible; give a number above 0 and at most 1"),
        (dict(typical_p=1.1), "typical_p=1.1"),
        (dict(typical_p="most"), "typical_p='most'"),
        (dict(presence_penalty=2.1), "presence_penalty=2.1 is not possible; give a number from -2"),
        (dict(presence_penalty=float("nan")), "presence_penalty=nan"),
        (dict(frequency_penalty=-2.1), "frequency_penalty=-2.1"),
        (dict(frequency_penalty=-1e-40), "frequency_penalty=-1e-40"),
        (dict(frequency_penalty=True), "frequency_penalty=True"),
        (dict(logit_bias={1: 2.0}), r"logit_bias=\{1: 2.0\} is not possible; give a tuple of"),
        (dict(logit_bias=((1, 2, 3),)), "give a tuple of"),
        (dict(logit_bias=((1.5, 2),)), "an id of logit_bias=1.5 is not possible"),
        (dict(logit_bias=((-1, 2),)), "an id of logit_bias=-1"),
        (dict(logit_bias=((1, 101),)), r"logit_bias\[1\]=101 is not possible; give a number from"),
        (dict(logit_bias=((1, "x"),)), r"logit_bias\[1\]='x'"),
        (dict(logit_bias=((1, 1), (1, 2))), "logit_bias has the id 1, twice"),
        (dict(logit_bias=((2**31, 1),)), "2147483648, which is no token"),
        (dict(logit_bias=tuple((i, 1) for i in range(301))), "has 301 tokens; give at most 300"),
    ],
    ids=str,
)
def test_options_out_of_range(options, words):
    with pytest.raises(GenerationError, match=words) as caught:
        Sampling(**options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_ids_beyond_a_vocabulary_are_refused():
    s = Sampling(logit_bias=((7, 1.0), (9, 1.0)))
    s.require_ids(10)
    with pytest.raises(GenerationError, match="the id 9, which cannot be drawn; .* 0 to 8"):
        s.require_ids(9)
