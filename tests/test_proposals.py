"""Speculative decoding: what is proposed, and that no proposal changes a text."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.engine.acceptance import Accepted, accept
from llmasos_jax.engine.proposals import PromptLookup, Proposer
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.sampling import Sampling, SamplingRows, Seen, draw, sampling_rows

V, T = 13, 5
accept_jit = jax.jit(accept)
draw_jit = jax.jit(draw)


def propose(ids: list[int], num: int, *, longest: int = 4, shortest: int = 2) -> list[int]:
    lookup = PromptLookup(longest, shortest)
    lookup.extend(ids)
    return lookup.propose(num)


def test_the_longest_run_goes_before_a_later_one() -> None:
    ids = [1, 2, 3, 4, 7, 7, 2, 3, 5, 7, 1, 2, 3]
    assert propose(ids, 2) == [4, 7]  # 1 2 3 stood there, then 2 3
    assert propose(ids, 2, longest=2) == [5, 7]


def test_of_equal_runs_the_latest_goes() -> None:
    assert propose([1, 2, 3, 1, 2, 4, 1, 2], 1) == [4]
    assert propose([1, 2, 3, 1, 2, 4, 1, 2], 3) == [4, 1, 2]


def test_a_run_that_reaches_into_the_end_is_repeated_on() -> None:
    assert propose([9, 1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
    assert propose([5, 5, 5], 4) == [5, 5, 5, 5]


@pytest.mark.parametrize("ids", [[], [1], [1, 1], [1, 2], [1, 2, 3, 4, 2], [3, 1, 2, 4, 5, 2]])
def test_nothing_is_proposed_without_a_run(ids: list[int]) -> None:
    assert propose(ids, 3) == []


def test_one_token_is_a_run_if_that_is_asked_for() -> None:
    assert propose([1, 2, 3, 1], 2, shortest=1) == [2, 3]
    assert propose([1, 2, 3, 1], 0, shortest=1) == []
    with pytest.raises(GenerationError, match="1 <= shortest <= longest"):
        PromptLookup(2, 3)


def plain(ids: list[int], num: int, longest: int, shortest: int) -> list[int]:
    """By the definition, the longest run first, from the end."""
    for length in range(longest, shortest - 1, -1):
        for stop in range(len(ids) - 1, length - 1, -1):
            if ids[stop - length : stop] == ids[len(ids) - length :]:
                text = list(ids)
                for i in range(num):
                    text.append(text[stop + i])
                return text[len(ids) :]
    return []


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    ids=st.lists(st.integers(0, 3), max_size=30),
    more=st.lists(st.integers(0, 3), max_size=90),
    num=st.integers(0, 6),
    shortest=st.integers(1, 3),
    further=st.integers(0, 3),
)
def test_proposals_are_those_of_the_definition(
    ids: list[int], more: list[int], num: int, shortest: int, further: int
) -> None:
    lookup: Proposer = PromptLookup(shortest + further, shortest)
    lookup.extend(ids)
    assert lookup.propose(num) == plain(ids, num, shortest + further, shortest)
    lookup.extend(more)
    assert lookup.propose(num) == plain(ids + more, num, shortest + further, shortest)


SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=1, seed=3),
    Sampling(temperature=0.7, top_k=4, seed=3, index=1),
    Sampling(temperature=1.5, top_p=0.8, min_p=0.02, seed=4),
    Sampling(temperature=0, repetition_penalty=1.7),
    Sampling(temperature=1, repetition_penalty=1.4, seed=5),
    Sampling(temperature=0, presence_penalty=0.7, frequency_penalty=0.4, logit_bias=((4, 1.5),)),
    Sampling(temperature=0.9, typical_p=0.7, frequency_penalty=-0.1, presence_penalty=0.2, seed=6),
]
PROMPT = [1, 2, 3]


def model(seed: int) -> np.ndarray:
    """Logits [V, V, V] of what comes behind the last two tokens."""
    return np.random.default_rng(seed).normal(0, 2, (V, V, V)).astype(np.float32)


def rows_of(samplings: list[Sampling]) -> SamplingRows:
    return sampling_rows(samplings)


def seen_of(texts: list[list[int]]) -> Seen:
    """Of texts that begin with `PROMPT`."""
    num = len(PROMPT)
    return Seen(
        jnp.asarray(np.stack([np.isin(np.arange(V), text[:num]) for text in texts])),
        jnp.asarray([np.bincount(text[num:], minlength=V) for text in texts], jnp.int32),
    )


def nothing_seen(num: int) -> Seen:
    return Seen(jnp.zeros((num, V), bool), jnp.zeros((num, V), jnp.int32))


# What may come behind a token, where that is bound: any six, and the next number.
ALLOWED = np.array(
    [
        sum(1 << int(i) for i in {*np.random.default_rng(t).choice(V, 6), (t + 1) % V})
        for t in range(V)
    ],
    np.uint32,
)[:, None]


def one_by_one(table: np.ndarray, num: int, *, is_bound: bool) -> list[list[int]]:
    """The texts of all `SAMPLINGS`, prompt included, drawn a token at a time."""
    rows = rows_of(SAMPLINGS)
    texts = [list(PROMPT) for _ in SAMPLINGS]
    for _ in range(num):
        logits_bv = np.stack([table[text[-2], text[-1]] for text in texts])
        position_b = np.array([len(text) for text in texts], np.int32)
        allowed_bw = np.stack([ALLOWED[text[-1]] for text in texts]) if is_bound else None
        token_b = draw_jit(logits_bv, seen_of(texts), position_b, rows, allowed_bw)
        for text, token in zip(texts, np.asarray(token_b), strict=True):
            text.append(int(token))
    return texts


def step(
    table: np.ndarray,
    texts: list[list[int]],
    proposals: list[list[int]],
    rows: SamplingRows,
    *,
    is_bound: bool = False,
) -> Accepted:
    """What a step of the engine does: logits behind the newest token and each proposal."""
    logits_btv = np.full((len(texts), T, V), np.nan, np.float32)  # unused places are not numbers
    proposed_bp = np.zeros((len(texts), T - 1), np.int32)
    allowed_btw = np.zeros((len(texts), T, 1), np.uint32)
    for b, (text, proposed) in enumerate(zip(texts, proposals, strict=True)):
        whole = [*text, *proposed]
        for place in range(len(proposed) + 1):
            end = len(text) + place
            logits_btv[b, place] = table[whole[end - 2], whole[end - 1]]
            allowed_btw[b, place] = ALLOWED[whole[end - 1]]
        proposed_bp[b, : len(proposed)] = proposed
    return accept_jit(
        logits_btv,
        proposed_bp,
        np.array([len(proposed) for proposed in proposals], np.int32),
        seen_of(texts),
        np.array([len(text) for text in texts], np.int32),
        rows,
        allowed_btw if is_bound else None,
    )


def speculated(
    table: np.ndarray, num: int, propose_for: Callable, *, is_bound: bool
) -> tuple[list[list[int]], int]:
    """The texts with proposals, at least `num` tokens each, and the steps that they took."""
    rows = rows_of(SAMPLINGS)
    texts, steps = [list(PROMPT) for _ in SAMPLINGS], 0
    while min(map(len, texts)) < len(PROMPT) + num:
        proposals = [list(propose_for(b, text))[: T - 1] for b, text in enumerate(texts)]
        found = step(table, texts, proposals, rows, is_bound=is_bound)
        for b, text in enumerate(texts):
            num_new = int(found.num_b[b]) + 1
            text.extend(int(i) for i in found.token_bt[b, :num_new])
            assert text[-1] == int(found.next_b[b])
            assert not np.asarray(found.token_bt)[b, num_new:].any()
        jax.tree.map(np.testing.assert_array_equal, found.seen, seen_of(texts))
        steps += 1
    return [text[: len(PROMPT) + num] for text in texts], steps


@pytest.mark.parametrize("is_bound", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_the_text_is_that_without_proposals(seed: int, is_bound: bool) -> None:
    """Greedy or sampled, penalties or none, each row with its own proposals, right or wrong."""
    table, num = model(seed), 60
    expected = one_by_one(table, num, is_bound=is_bound)
    generator = np.random.default_rng(seed)

    def at_random(b: int, text: list[int]) -> list[int]:
        return generator.integers(0, V, generator.integers(0, T)).tolist()

    def right_for_a_while(b: int, text: list[int]) -> list[int]:
        right = expected[b][len(text) : len(text) + T - 1]
        wrong = generator.random(len(right)) < 0.3
        return [(i + 1) % V if w else i for i, w in zip(right, wrong, strict=True)]

    def looked_up(b: int, text: list[int]) -> list[int]:
        return propose(text, T - 1)

    for propose_for in (at_random, right_for_a_while, looked_up):
        assert speculated(table, num, propose_for, is_bound=is_bound)[0] == expected
    right = lambda b, text: expected[b][len(text) :]
    texts, steps = speculated(table, num, right, is_bound=is_bound)
    assert texts == expected and steps == num // T


def test_a_draft_that_draws_with_the_same_noise_changes_nothing_and_is_mostly_right() -> None:
    """Accepted at least as often as Gumbel coupling promises, (1 - TV) / (1 + TV)."""
    sampling = Sampling(temperature=1, seed=11)
    generator = np.random.default_rng(2)
    n = 4000
    rows = sampling_rows([sampling] * n)
    target_v = generator.normal(0, 1.5, V).astype(np.float32)
    draft_v = (target_v + generator.normal(0, 0.5, V)).astype(np.float32)
    position_b = np.arange(n, dtype=np.int32)
    seen = nothing_seen(n)
    proposed_b = draw_jit(np.tile(draft_v, (n, 1)), seen, position_b, rows)
    logits_btv = np.tile(target_v, (n, 2, 1))
    found = accept_jit(
        logits_btv, proposed_b[:, None], np.ones(n, np.int32), seen, position_b, rows
    )
    alone_b = draw_jit(np.tile(target_v, (n, 1)), seen, position_b, rows)
    np.testing.assert_array_equal(found.token_bt[:, 0], alone_b)
    p, q = (np.exp(x) / np.exp(x).sum() for x in (target_v, draft_v))
    tv = np.abs(p - q).sum() / 2
    rate = float(np.mean(np.asarray(found.num_b)))
    spread = 4 * np.sqrt(0.25 / n)
    assert (1 - tv) / (1 + tv) - spread < rate < 1 - tv + spread
    independent = float(p @ q)
    assert rate > independent + 0.3  # what a draft with a noise of its own would reach


def test_sampled_tokens_keep_the_distribution_of_the_model() -> None:
    """Chi-square of the tokens at each place, with a proposal that is always the same."""
    n = 20_000
    rows = sampling_rows([Sampling(temperature=1, seed=7)] * n)
    logits_v = np.random.default_rng(5).normal(0, 1, V).astype(np.float32)
    likely = int(logits_v.argmax())
    found = accept_jit(
        np.tile(logits_v, (n, 2, 1)),
        np.full((n, 1), likely, np.int32),
        np.ones(n, np.int32),
        nothing_seen(n),
        2 * np.arange(n, dtype=np.int32),
        rows,
    )
    p = np.exp(logits_v) / np.exp(logits_v).sum()
    accepted_b = np.asarray(found.num_b) == 1
    assert abs(accepted_b.mean() - p[likely]) < 4 * np.sqrt(p[likely] / n)
    for tokens in (np.asarray(found.token_bt)[:, 0], np.asarray(found.token_bt)[accepted_b, 1]):
        expected = p * len(tokens)
        seen = np.bincount(tokens, minlength=V)
        # Degrees of freedom 12: above 32.9 once in a thousand.
        assert ((seen - expected) ** 2 / expected).sum() < 32.9


def test_logits_that_are_not_numbers_end_the_row_and_no_other() -> None:
    table = model(0)
    texts = [list(PROMPT), list(PROMPT)]
    rows = rows_of([Sampling(temperature=0)] * 2)
    first = int(table[2, 3].argmax())
    second = int(table[3, first].argmax())
    bad = table.copy()
    found = step(table, texts, [[first, second], [first, second]], rows)
    bad[3, first] = np.nan
    logits_btv = np.stack([[bad[2, 3], bad[3, first]], [table[2, 3], table[3, first]]])
    mixed = accept_jit(
        logits_btv,
        np.array([[first], [first]], np.int32),
        np.ones(2, np.int32),
        seen_of(texts),
        np.full(2, 3, np.int32),
        rows,
    )
    assert found.num_b.tolist() == [2, 2]
    assert mixed.num_b.tolist() == [1, 1]
    assert mixed.next_b.tolist() == [V, second]


def test_one_place_is_a_draw() -> None:
    rows = sampling_rows(SAMPLINGS)
    b = len(SAMPLINGS)
    logits_bv = np.random.default_rng(1).normal(size=(b, V)).astype(np.float32)
    prompt_bv = np.random.default_rng(2).random((b, V)) < 0.5
    seen = Seen(jnp.asarray(prompt_bv), jnp.zeros((b, V), jnp.int32))
    position_b = np.arange(b, dtype=np.int32)
    nothing = np.zeros((b, 0), np.int32), np.zeros(b, np.int32)
    found = accept_jit(logits_bv[:, None], *nothing, seen, position_b, rows)
    np.testing.assert_array_equal(found.token_bt[:, 0], draw_jit(logits_bv, seen, position_b, rows))
    assert not found.num_b.any()
