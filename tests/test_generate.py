"""The promises of generation: what equals what, to the bit or a tolerance, and what compiles."""

import numpy as np
import pytest
from small_model import (
    FAMILIES,
    SMALL,
    broken_model,
    greedy_by_forward,
    ids_of,
    small_model,
    start,
)
from tolerances import SIMPLE, WHOLE_MODEL

from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Generation
from llmasos_jax.generate.session import power_of_two, quarter_steps

OPTIMIZED = True  # conftest.py: programs as users have them

PROMPTS = ["Hello", "x", "def f(x):\n    return", "你好，世界！", "The world is full of "]


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_prefill_then_decode_equals_one_forward(model):
    prompts = PROMPTS[:3]
    run = start(model, prompts, 12, temperature=0.0)
    run.advance(11)
    for prompt, ids in zip(prompts, run.new_ids(), strict=True):
        expected, margins = greedy_by_forward(model, model.encode(prompt), 12)
        assert min(margins) > WHOLE_MODEL, "the model must decide clearly, or this shows nothing"
        assert ids == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 16])
def test_cached_logits_equal_one_forward(family, chunk):
    import dataclasses

    import jax
    import jax.numpy as jnp

    from llmasos_jax.models.definition import empty_cache

    model = small_model(FAMILIES[family])
    weights = model._weights
    bound = weights.definition.bind(weights.params)
    rng = np.random.default_rng(0)
    tokens, starts = rng.integers(0, 259, (2, 32)), np.array([0, 5], np.int32)
    cache = empty_cache(weights.definition, 2, 48)
    cache = dataclasses.replace(cache, start_b=jnp.asarray(starts))
    parts = []

    @jax.jit
    def extend(piece, cache):
        hidden = bound.hidden(piece, cache=cache, runtime=weights.runtime)
        return bound.logits(hidden.x_btd, weights.runtime), hidden.cache

    for at in range(0, 32, chunk):
        piece = jnp.asarray(tokens[:, at : at + chunk], jnp.int32)
        logits, cache = extend(piece, cache)
        parts.append(logits)
    got = np.concatenate(parts, axis=1)
    whole = np.asarray(model.logits(tokens, np.arange(32)[None] >= starts[:, None]))
    scale = np.abs(whole).max()
    np.testing.assert_allclose(got[0], whole[0], atol=SIMPLE * scale)
    np.testing.assert_allclose(got[1, 5:], whole[1, 5:], atol=SIMPLE * scale)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neighbours_change_no_bit(model, temperature):
    # Same shape: batches of 4, prompts of up to 32 tokens. Text 1 stays, all others change.
    options = dict(temperature=temperature, seed=5, top_p=0.95)
    one = ids_of(model, [PROMPTS[0], PROMPTS[2], "a", "b"], 20, **options)
    other = ids_of(model, ["a longer prompt of 30 chars...", PROMPTS[2], "zz", "?"], 20, **options)
    three = ids_of(model, [PROMPTS[1], PROMPTS[2], PROMPTS[4]], 20, **options)
    assert one[1] == other[1] == three[1]
    assert one[0] != other[0]


def test_neighbours_change_no_bit_of_the_logits(model):
    def last_keys(prompts):
        run = start(model, prompts, 20, temperature=0.0)
        run.advance(19)
        return np.asarray(run.state.cache.layers["prefix"]["1"].k_rhs).reshape(2, 4, 12, -1)[:, 1]

    same = last_keys([PROMPTS[0], PROMPTS[2], "a", "b"])
    other = last_keys(["a longer prompt of 30 chars...", PROMPTS[2], "zz"])
    np.testing.assert_array_equal(same, other)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("options", [{}, {"stop": ["e"]}, {"echo": True}], ids=str)
def test_streaming_gives_the_same_text(model, deterministic, options):
    options = dict(max_length=25, seed=3, deterministic=deterministic, **options)
    texts = model.generate_text(PROMPTS, **options)
    streamed = [""] * len(PROMPTS)
    for i, piece in model.generate_text(PROMPTS, stream=True, **options):
        assert piece
        streamed[i] += piece
    assert streamed == texts
    assert "".join(model.generate_text(PROMPTS[0], stream=True, **options)) == texts[0]


def test_deterministic_is_exact_whatever_the_list(model):
    options = dict(max_length=20, seed=9, deterministic=True, top_k=50)
    alone = model.generate_text(PROMPTS[0], **options)
    assert model.generate_text([PROMPTS[0], *PROMPTS], **options)[0] == alone
    fresh = small_model()
    assert fresh.generate_text(PROMPTS[:1], **options) == [alone]
    # The text so far as a prompt goes on with the same tokens: positions carry the noise.
    ids = ids_of(model, [PROMPTS[0]], 20, temperature=1.0, top_k=50, seed=9, deterministic=True)[0]
    start_text = model.decode(ids[:1])
    if model.encode(PROMPTS[0] + start_text) == [*model.encode(PROMPTS[0]), ids[0]]:
        more = ids_of(model, [PROMPTS[0] + start_text], 19, top_k=50, seed=9, deterministic=True)
        assert more[0] == ids[1:]


def test_across_shapes_tokens_differ_only_where_scores_are_close(model):
    # Eight shapes: batches 1, 2, 4, 8 and the deterministic one, short and long neighbours.
    prompts = ["One", "Two two", "Three three three", "4"]
    base = {p: ids_of(model, [p], 24, temperature=0.0)[0] for p in prompts}
    runs = [
        ids_of(model, prompts[:2], 24, temperature=0.0),
        ids_of(model, prompts, 24, temperature=0.0),
        ids_of(model, [*prompts, "x" * 40], 24, temperature=0.0),
        [ids_of(model, [p], 24, temperature=0.0, deterministic=True)[0] for p in prompts],
    ]
    differ = compared = 0
    for ids_list in runs:
        for prompt, ids in zip(prompts, ids_list, strict=False):
            compared += len(ids)
            at = next(
                (i for i, (a, b) in enumerate(zip(ids, base[prompt], strict=True)) if a != b), None
            )
            if at is None:
                continue
            differ += 1
            scores = np.asarray(model.logits([[*model.encode(prompt), *ids[:at]]]))[0, -1]
            assert abs(scores[ids[at]] - scores[base[prompt][at]]) < WHOLE_MODEL
    assert compared == 24 * 14
    assert differ <= 1


def test_a_second_generation_and_other_lengths_compile_nothing(compiles):
    model = small_model()
    first = model.generate_text(["a b c", "d"], max_length=20, seed=1, stop=["QQ"])
    num = model.session.num_compiled
    compiles.reset()
    assert model.generate_text(["a b c", "d"], max_length=20, seed=1, stop=["QQ"]) == first
    assert compiles.count == 0
    # Other lengths in the same bucket, other options, streaming: the same programs.
    model.generate_text(["abcdefgh", "xy"], max_length=18, temperature=0.3, top_k=3, seed=2)
    list(model.generate_text(["q", "rst"], max_length=20, top_p=0.5, stream=True))
    assert compiles.count == 0 and model.session.num_compiled == num
    model.generate_text("a" * 17, max_length=20)  # another bucket
    assert compiles.count > 0 and model.session.num_compiled > num


def test_each_row_has_its_own_end(model):
    ids = ids_of(model, PROMPTS, 15, temperature=0.0)
    eos = ids[1][4]
    ending = small_model(generation=Generation(eos_ids=(eos,)))
    got = ids_of(ending, PROMPTS, 15, temperature=0.0)
    for before, after in zip(ids, got, strict=True):
        cut = before.index(eos) if eos in before else 15
        assert after == before[:cut]
    assert len(got[1]) <= 4


def test_the_context_ends_a_text(model):
    prompt = "x" * 80  # and the beginning id: 81 of 96
    assert len(ids_of(model, [prompt, "y"], 50, temperature=0.0)[0]) == 15
    assert len(ids_of(model, [prompt], 50, temperature=0.0, deterministic=True)[0]) == 15
    with pytest.raises(GenerationError, match="96 tokens.*holds 96.*at most 95"):
        model.generate_text("x" * 95)


def test_stop_strings_and_the_models_own(model):
    text = model.generate_text("ab", max_length=40, seed=4)
    stop = text[8:10]
    assert model.generate_text("ab", max_length=40, seed=4, stop=stop) == text[: text.index(stop)]
    own = small_model(generation=Generation(stop=(stop,)))
    assert own.generate_text("ab", max_length=40, seed=4) == text[: text.index(stop)]
    assert (
        own.generate_text("ab", max_length=40, seed=4, echo=True) == "ab" + text[: text.index(stop)]
    )


def test_samples_draw_from_their_index(model):
    texts = model.generate_text(["ab"] * 3, max_length=12, seed=4, temperature=2.0)
    assert len(set(texts)) == 3
    assert model.generate_text("ab", max_length=12, seed=5, temperature=2.0) != texts[0]


def test_repetition_penalty_forbids_what_was_seen(model):
    ids = ids_of(model, ["abc"], 25, temperature=0.0, repetition_penalty=1e6)[0]
    seen = set(model.encode("abc"))
    assert len(set(ids)) == 25 and not seen & set(ids)


def test_ids_beyond_the_tokenizer_are_never_drawn(model):
    drawn = ids_of(model, PROMPTS, 60, temperature=50.0, seed=0)
    assert max(max(ids) for ids in drawn) < model.tokenizer.vocab_size == 259 < SMALL.vocab_size


def test_more_prompts_than_one_batch(model, monkeypatch):
    from llmasos_jax.generate import writer

    whole = model.generate_text(PROMPTS, max_length=6, temperature=0.0)
    monkeypatch.setattr(writer, "LARGEST_BATCH", 2)
    assert model.generate_text(PROMPTS, max_length=6, temperature=0.0) == whole


def test_weights_that_are_not_numbers():
    with pytest.raises(GenerationError, match="not finite"):
        broken_model().generate_text("a", max_length=3)


def test_buckets_waste_at_most_a_quarter():
    for num in range(64, 3000):
        assert num <= quarter_steps(num) <= 1.25 * num
        assert num <= power_of_two(num) < 2 * num
