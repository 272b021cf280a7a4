"""Typical-p, penalties of counts and biases of whole texts: through the model and the terminal."""

import json

import numpy as np
import pytest
from small_model import ids_of, small_model
from tolerances import WHOLE_MODEL

from llmasos_jax.cli import main as cli
from llmasos_jax.errors import GenerationError

OPTIMIZED = True  # conftest.py: programs as users have them

ASKED = dict(
    presence_penalty=1.5, frequency_penalty=0.75, logit_bias={101: 3.0, 120: -100}, typical_p=0.6
)


@pytest.fixture(scope="module")
def model():
    return small_model()


def by_forward(model, prompt, num, *, presence_penalty, frequency_penalty, logit_bias, **_):
    """Greedy tokens by definition, from whole forward passes, and by how much each one won."""
    ids, num_ids = model.encode(prompt), model.num_ids
    counts, margins, new = np.zeros(num_ids), [], []
    for _ in range(num):
        x = np.asarray(model.logits([[*ids, *new]]))[0, -1, :num_ids].astype(np.float64)
        for token, bias in logit_bias.items():
            x[token] += bias
        x -= presence_penalty * (counts > 0) + frequency_penalty * counts
        first, second = np.sort(x)[::-1][:2]
        margins.append(first - second)
        new.append(int(x.argmax()))
        counts[new[-1]] += 1
    return new, margins


def test_a_text_follows_the_definition(model):
    plain = ids_of(model, ["Hello"], 16, temperature=0.0)[0]
    got = ids_of(model, ["Hello"], 16, temperature=0.0, **ASKED)[0]
    wanted, margins = by_forward(model, "Hello", 16, **ASKED)
    assert min(margins) > WHOLE_MODEL, "the model must decide clearly, or this shows nothing"
    assert got == wanted[: len(got)] and len(got) > 8
    assert got != plain


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_text_streamed(model, deterministic):
    options = dict(max_length=20, seed=4, deterministic=deterministic, **ASKED)
    text = model.generate_text("Hello", **options)
    assert "".join(model.generate_text("Hello", stream=True, **options)) == text
    assert "x" not in text  # 120, -100
    assert text != model.generate_text("Hello", max_length=20, seed=4)


def test_options_compile_nothing(model, compiles):
    model.generate_text("Hello", max_length=20)
    compiles.reset()
    model.generate_text("Hello", max_length=20, **ASKED)
    assert compiles.count == 0


def test_a_text_knows_no_neighbour_that_asks(model):
    from llmasos_jax.generate.request import make_requests, read_options

    def texts(others):
        options = [dict(others), dict(seed=8, top_p=0.9, **ASKED), dict(others), dict(others)]
        requests = [
            make_requests(["Hello"], read_options(20, **o), model.tokenizer, model.manifest)[0]
            for o in options
        ]
        run = model.session.start(requests)
        run.advance(20)
        return run.new_ids()

    asked = dict(seed=2, repetition_penalty=1.3, min_p=0.01, logit_bias={9: 4.0}, top_k=30)
    alone, among = texts(dict(temperature=0.0)), texts(asked)
    assert alone[1] == among[1] and len(alone[1]) > 3
    assert alone[0] != among[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(logit_bias=[(1, 2)]), r"logit_bias=\[\(1, 2\)\] is not possible; give biases by id"),
        (dict(logit_bias={"1": 2}), "an id of logit_bias='1' is not possible"),
        (dict(logit_bias={259: 2}), "the id 259, which cannot be drawn; give ids from 0 to 258"),
        (dict(typical_p=2), "typical_p=2"),
        (dict(presence_penalty=3), "presence_penalty=3"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_options_are_refused_at_once(model, options, words, stream):
    with pytest.raises(GenerationError, match=words):
        model.generate_text("a", stream=stream, **options)


def test_the_terminal_takes_them(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    words = ["generate", str(tmp_path / "model"), "Hello", "--seed=4", "--max-length=12", "--json"]
    asked = ["--typical-p=0.6", "--presence-penalty=1.5", "--frequency-penalty=0.75"]
    assert cli.main([*words, *asked, "--logit-bias=101=3", "--logit-bias=120=-100"]) == 0
    text = json.loads(capsys.readouterr().out)["texts"][0]
    assert text == model.generate_text("Hello", 12, seed=4, **ASKED)
    assert cli.main([*words, "--logit-bias=101=100", "--temperature=0"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == ["e" * 12]
