"""The public Model: arguments, members, and errors that say what to do."""

import logging

import jax
import numpy as np
import pytest
from small_model import SMALL, small_model
from tolerances import WHOLE_MODEL

import llmasos_jax
from llmasos_jax.errors import GenerationError


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_the_function_is_the_method(model):
    options = dict(seed=1, top_k=5)
    text = model.generate_text("ab", 7, 0.5, **options)
    assert isinstance(text, str)
    assert llmasos_jax.generate_text(model, "ab", 7, 0.5, **options) == text
    assert llmasos_jax.generate_text(model, "ab", max_length=7, temperature=0.5, **options) == text
    assert model.generate_text(["ab"], 7, 0.5, **options) == [text]
    assert model.generate_text("ab", 7, 0.5, echo=True, **options) == "ab" + text


def test_a_fresh_seed_is_logged_and_kept(model, caplog):
    with caplog.at_level(logging.INFO, logger="llmasos_jax"):
        text = model.generate_text("ab", 8)
    assert f"seed={model.last_seed}" in caplog.text
    assert model.generate_text("ab", 8, seed=model.last_seed) == text
    first = model.last_seed
    model.generate_text("ab", 2)
    assert model.last_seed != first


@pytest.mark.parametrize("prompt", ["", ["", "a"]])
def test_an_empty_prompt_begins_a_text(model, prompt):
    assert model.generate_text(prompt, 3, seed=0) is not None


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        (3, {}, "prompt is a int; give a text"),
        (None, {}, "prompt is a NoneType"),
        ([], {}, "empty list"),
        (["a", 3], {}, r"prompt\[1\] is a int"),
        (b"a", {}, "prompt is a bytes"),
        ("a", dict(max_length=0), "max_length=0 is not possible.*at least 1"),
        ("a", dict(max_length=2.5), "max_length=2.5"),
        ("a", dict(temperature=-0.1), "temperature=-0.1"),
        ("a", dict(top_p=2), "top_p=2"),
        ("a", dict(top_k=0), "top_k=0"),
        ("a", dict(stop=""), "stop has ''"),
        ("a", dict(stop=3), "stop=3"),
        ("a", dict(seed="x"), "seed='x'"),
        ("a", dict(stream=1), "stream=1.*True or False"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_arguments_are_refused_at_once(model, prompt, options, words, stream):
    # A stream too: at the call, not at the first piece.
    with pytest.raises(GenerationError, match=words):
        model.generate_text(prompt, **{"stream": stream, **options})


def test_encode_and_decode(model):
    assert model.encode("hé") == [256, 104, 195, 169]
    assert model.decode(np.array([256, 104, 195, 169, 257])) == "hé"
    assert model.decode([]) == ""
    with pytest.raises(GenerationError, match="whole numbers"):
        model.decode([1.5])
    for ids in ([300], [-1], [1 << 40]):
        with pytest.raises(GenerationError, match="ids reach from .* 0 to 299"):
            model.decode(ids)
    with pytest.raises(GenerationError, match="give a text"):
        model.encode(b"a")


def test_logits_and_padding(model):
    ids = [[5, 6, 7, 8], [9, 10, 11, 12]]
    whole = np.asarray(model.logits(ids))
    assert whole.shape == (2, 4, SMALL.vocab_size) and whole.dtype == np.float32
    right = model.logits([[*row, 0, 0] for row in ids], [[1] * 4 + [0] * 2] * 2)
    left = model.logits([[0, 0, *row] for row in ids], [[0] * 2 + [1] * 4] * 2)
    np.testing.assert_allclose(right[:, :4], whole, atol=WHOLE_MODEL)
    np.testing.assert_allclose(left[:, 2:], whole, atol=WHOLE_MODEL)


def test_hidden_states(model):
    states = model.hidden_states([[5, 6, 7]])
    assert len(states) == SMALL.num_layers + 1
    assert all(x.shape == (1, 3, SMALL.embedding_dim) and x.dtype == np.float32 for x in states)
    table = model._weights.params["embed"]["table"]
    np.testing.assert_array_equal(states[0][0], np.asarray(table)[[5, 6, 7]])
    # The last one, through the tied output layer, gives the logits.
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(
            states[-1] @ table.T, model.logits([[5, 6, 7]]), atol=WHOLE_MODEL
        )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (([1, 2],), r"expected whole numbers \[batch, tokens\]"),
        (([[1, 2], [3]],), "unequal length"),
        (([[0.5]],), "whole numbers"),
        (([[]],), "expected whole numbers"),
        (([[1, 300]],), "0 to 299"),
        (([[-1]],), "from -1"),
        (([[1, 2]], [[1]]), "does not fit"),
        (([[1, 2]], [[1, 2]]), "1 for tokens and 0 for padding"),
    ],
    ids=str,
)
def test_ids_that_do_not_fit(model, args, words):
    with pytest.raises(GenerationError, match=words):
        model.logits(*args)


def test_what_is_not_there_yet_says_so(model):
    with pytest.raises(GenerationError, match="no chat template"):
        model.chat([{"role": "user", "content": "hi"}])
    with pytest.raises(GenerationError, match="no token types"):
        model.hidden_states([[1]], token_type_ids=[[0]])


def test_it_says_what_it_is(model):
    assert model.num_parameters == sum(a.size for a in jax.tree.leaves(model._weights.params))
    assert "2 layers" in repr(model) and "float32 on cpu" in repr(model)
    assert model.config == SMALL
    with pytest.raises(AttributeError):
        model.config.vocab_size = 3


def test_an_encoder_does_not_continue():
    encoder = small_model(SMALL.replace(causal=False))
    with pytest.raises(GenerationError, match="both directions"):
        encoder.generate_text("a")
    assert encoder.logits([[1, 2]]).shape == (1, 2, 300)
