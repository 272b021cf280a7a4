"""Questions in rows with branches: the same scores as each continuation has alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_options import BASE, OPTIONS
from small_model import random_params
from tolerances import SIMPLE

from llmasos_jax.evals.metrics import rows as rows_of
from llmasos_jax.evals.metrics.rows import batches, laid_out, packed, parts_of, wide
from llmasos_jax.evals.metrics.scorer import Question, Scored, Scorer
from llmasos_jax.format.names import flatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.generate.weights import Placing, Weights, place_tensors
from llmasos_jax.models.definition import empty_cache, file_def
from llmasos_jax.nn.kernels import dot_product
from llmasos_jax.nn.runtime import Runtime

CASES = {
    "rope": {},
    "windows": OPTIONS["most of a decoder"],
    "prefix": dict(prefix_lm=True, attention_windows=(6, None)),
    "relative prefix": OPTIONS["relative"] | dict(prefix_lm=True),
    **{name: OPTIONS[name] for name in ("learned", "relative", "longrope", "experts", "latent")},
    "alibi": OPTIONS["alibi, one key head"],
}
# Several rows of 64 and, in one of 512, blocks of queries: 128 make one.
SHAPES = [(9, [2, 6, 3, 8]), (25, [7]), (28, [1, 1, 1]), (3, [9, 9]), (30, [10, 1, 4]), (1, [5])]
T = BASE.context_length


@functools.cache
def weights_of(name: str) -> Weights:
    definition = file_def(BASE.replace(**CASES[name]))
    tensors = {n: stored(np.asarray(a)) for n, a in flatten(random_params(definition)).items()}
    return place_tensors(Placing(definition, None), tensors, None)


def questions(shapes: list[tuple[int, list[int]]] = SHAPES, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)
    draw = lambda num: rng.integers(0, BASE.vocab_size, num).tolist()
    return [Question(draw(n), [draw(m) for m in more]) for n, more in shapes]


def alone(name: str, asked: list[Question]) -> list[tuple[np.ndarray, bool]]:
    """Of each continuation, from a row that holds it and its context alone."""
    weights = weights_of(name)
    pairs = [(q.context, ids) for q in asked for ids in q.continuations]
    tokens, mask, prefix = np.zeros((3, len(pairs), T), np.int32)
    for row, (context, ids) in enumerate(pairs):
        whole = [*context, *ids][:T]
        tokens[row, : len(whole)], mask[row, : len(whole) - 1] = whole, 1
        prefix[row, : len(context)] = 1
    more = {"prefix_bt": prefix} if weights.definition.cfg.prefix_lm else {}

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, tokens, mask, more):
        model, runtime = weights.definition.bind(params), weights.runtime
        x_btd = model.hidden(tokens, segment_ids_bt=mask, runtime=runtime, **more).x_btd
        return jax.nn.log_softmax(model.logits(x_btd, runtime))

    logp = np.asarray(run(weights.params, tokens, mask, more))
    found = []
    for row, (context, ids) in enumerate(pairs):
        own = logp[row, len(context) - 1 :][: len(ids)]
        found.append((own[np.arange(len(ids)), ids], bool((own.argmax(1) == ids).all())))
    return found


def assert_same(found: list[list[Scored]], expected: list[tuple[np.ndarray, bool]]) -> None:
    flat = [scored for scores in found for scored in scores]
    for scored, (logp, is_greedy) in zip(flat, expected, strict=True):
        np.testing.assert_allclose(scored.tokens, logp, rtol=SIMPLE, atol=SIMPLE)
        assert scored.is_greedy == is_greedy


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_each_continuation_alone(name: str) -> None:
    asked = questions()
    expected = alone(name, asked)
    assert np.ptp([logp.mean() for logp, _ in expected]) > 0.1
    assert_same(Scorer(weights_of(name)).score(asked), expected)


def test_what_stands_beside_a_question_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In narrow rows, several a batch, wider ones for some, and a question in several parts."""
    asked = questions([*SHAPES, (2, [7] * 30), (4, [1] * 70), (20, [20, 20, 20])])
    expected = alone("rope", asked)
    scorer = Scorer(weights_of("rope"))
    monkeypatch.setattr(scorer, "_width", 64)
    monkeypatch.setattr(scorer, "_tokens_at_once", 256)
    assert_same(scorer.score(asked), expected)
    order = [index for index, _ in scorer.stream(asked)]
    assert sorted(order) == list(range(len(asked))) and order.index(6) < order.index(5)


def own_attention(q_btnh, k_bskh, v_bskh, visible, **options):
    assert visible.k_branches is None and visible.q_index.shape[0] == 1
    return dot_product(q_btnh, k_bskh, v_bskh, visible, **options)


def test_a_function_of_ones_own_meets_no_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions(SHAPES[:2])
    expected = alone("rope", asked)
    monkeypatch.setitem(CASES, "own", {"attention": "test_scorer:own_attention"})
    assert_same(Scorer(weights_of("own")).score(asked), expected)


def test_tasks_of_mixed_lengths_are_one_program(compiles) -> None:
    scorer, rng = Scorer(weights_of("rope")), np.random.default_rng(2)
    draw = lambda: (int(rng.integers(2, 30)), rng.integers(1, 10, rng.integers(1, 6)).tolist())
    scorer.score(questions([draw() for _ in range(60)]))
    assert scorer._run._cache_size() == 1
    compiles.reset()
    scorer.score(questions([draw() for _ in range(70)], seed=1))
    assert compiles.count == 0


def test_rows_hold_every_token_and_pair_once() -> None:
    asked = questions([*SHAPES, (2, [7] * 90), (4, [1] * 700), (300, [2, 3]), (600, [9, 9])])
    parts = [
        p
        for i, q in enumerate(asked)
        for p in parts_of(i, q.context, q.continuations, 512, lambda _: 0)
    ]
    assert len(parts) > len(asked) and max(part.size for part in parts[: len(SHAPES)]) <= 512
    seen, read = [], 0
    for rows, num, width in batches(packed(parts, 512), 512, 1024):
        assert len(rows) <= num and all(row.used <= width for row in rows)
        layout = laid_out(rows, num, width)
        states, start = layout.states_s[: layout.num_states], 0
        assert len(set(states.tolist())) == len(states)
        flat = [x.reshape(-1) for x in (layout.tokens, layout.positions, layout.branches)]
        for part, place, many in layout.owners:
            question, pairs = asked[part.question], slice(start, start + many)
            ids, n = question.continuations[place], len(question.context)
            at = states[layout.slots_p[pairs]]
            assert layout.targets_p[pairs].tolist() == ids
            assert flat[0][at].tolist() == [question.context[-1], *ids[:-1]]
            assert flat[1][at].tolist() == list(range(n - 1, n - 1 + many))
            assert flat[2][at[0]] == 0 and len(set(flat[2][at[1:]].tolist())) <= 1
            seen.append((part.question, place))
            start += many
        read += int((layout.segments > 0).sum())
    assert sorted(seen) == [
        (i, c) for i, q in enumerate(asked) for c in range(len(q.continuations))
    ]
    assert read == sum(
        len(p.context) + sum(len(c) - 1 for c in p.continuations.values()) for p in parts
    )


def test_long_questions_get_wide_rows_that_others_fill() -> None:
    part = lambda i, size: rows_of.Part(i, [0] * size, {0: [1]})
    rows = packed([part(0, 700), part(1, 300), part(2, 60), part(3, 1100)], 512)
    assert [(row.width, [p.question for p in row.parts]) for row in rows] == [
        (wide(1100), [3, 1]), (wide(700), [0, 2]),
    ]  # fmt: skip
    assert [(num, width) for _, num, width in batches(rows, 512, 1024)] == [(1, 1536), (1, 768)]
    few = packed([part(0, 50), part(1, 60)], 512)
    assert [(num, width) for _, num, width in batches(few, 512, 1024)] == [(1, 128)]


def test_branches_where_they_cannot_be_are_refused() -> None:
    weights = weights_of("rope")
    model = weights.definition.bind(weights.params)
    tokens = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="branches_bt needs positions_bt"):
        model.hidden(tokens, branches_bt=tokens, runtime=Runtime())
    cache = empty_cache(weights.definition, 1, 8, jnp.float32)
    with pytest.raises(ValueError, match="not for a cache"):
        model.hidden(
            tokens, positions_bt=tokens, branches_bt=tokens, cache=cache, runtime=Runtime()
        )
