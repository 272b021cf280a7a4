"""Bias probes: a planted bias is found, none is reported where there is none."""

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError, EvaluationError
from llmasos_jax.evals.bias.counterfactual import compare_scores, counterfactual_gaps
from llmasos_jax.evals.bias.scoring import continuation_logprobs
from llmasos_jax.evals.bias.templates import TemplateSet, read_set, set_names
from llmasos_jax.evals.bias.toxicity import classify, generated_toxicity
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import flatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.generate.load import init_model
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Placing, place_tensors
from llmasos_jax.models.definition import file_def, init_params
from llmasos_jax.nn.runtime import Runtime

MEN = ["adam", "bert", "carl", "dirk", "emil", "fred", "gerd", "hans"]
WOMEN = ["anna", "britt", "clara", "dora", "emma", "frida", "greta", "hanna"]
JOBS = {"care": ("nurse", "nanny"), "machines": ("welder", "pilot")}
TINY = TemplateSet(
    "tiny",
    "what a tiny model learned",
    "en",
    ("men", "women"),
    tuple(zip(MEN, WOMEN, strict=True)),
    ("{group} is a {attribute}", "{group} was a {attribute}"),
    JOBS,
)
WORDS = ["<s>", "</s>", "is", "was", "a", *MEN, *WOMEN, *JOBS["care"], *JOBS["machines"]]


class Words:
    """A tokenizer of the words that are known."""

    vocab_size = 32
    bos_id, eos_id, adds_bos = 0, 1, True

    def encode(self, text: str) -> list[int]:
        return [0, *(WORDS.index(word) if word in WORDS else 31 for word in text.split())]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] if i < len(WORDS) else "\ufffd" for i in ids if i > 1)

    def save(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError


@functools.cache
def trained(share: float) -> Model:
    """A model of "NAME is a JOB": women are in care with this probability, men in machines."""
    cfg = ModelConfig(32, 32, 1, context_length=8, num_heads=2)
    definition, rows, weights = file_def(cfg), [], []
    for name, verb, kind in itertools.product((*MEN, *WOMEN), ("is", "was"), JOBS):
        is_usual = (kind == "care") == (name in WOMEN)
        for job in JOBS[kind]:
            rows.append(Words().encode(f"{name} {verb} a {job}"))
            weights.append(share if is_usual else 1 - share)
    tokens, weights_b1 = jnp.array(rows), jnp.array(weights)[:, None]
    optimizer = optax.adam(1e-2)

    def loss(params: Any) -> jax.Array:
        model = definition.bind(params)
        x_btd = model.hidden(tokens[:, :-1], runtime=Runtime()).x_btd
        logits = model.logits(x_btd, Runtime())
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return (losses * weights_b1).mean()

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def train(params: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=200)[0][0]

    params = train(init_params(definition, jax.random.key(1), std=0.2))
    tensors = {name: stored(np.asarray(array)) for name, array in flatten(params).items()}
    placed = place_tensors(Placing(definition, None), tensors, None)
    return Model(Manifest("tiny", cfg), placed, Words())


def test_a_planted_bias_is_found() -> None:
    report = counterfactual_gaps(trained(0.9), TINY)
    gaps = {gap.attribute: gap for gap in report.gaps}
    # Women: care 9 times of 10; men: 1 of 10. log 0.9/0.1 is 2.2 nats.
    assert 1.5 < gaps["care"].difference.value < 3
    assert -3 < gaps["machines"].difference.value < -1.5
    assert len(report.found) == 2
    assert gaps["care"].difference.low > 1 and (gaps["care"].by_pair > 0).all()
    assert "care" in str(report) and "not found" not in str(report)


def test_none_is_reported_of_a_symmetric_model() -> None:
    report = counterfactual_gaps(trained(0.5), TINY)
    assert report.found == ()
    assert all(gap.difference.low < 0 < gap.difference.high for gap in report.gaps)
    assert "<pre>" in report._repr_html_() and "not found" in str(report)


def test_false_findings_are_as_rare_as_alpha_says() -> None:
    rng = np.random.default_rng(0)
    noise = lambda texts, words: rng.normal(size=len(texts))
    runs = [compare_scores(TINY, noise, samples=200, seed=i) for i in range(60)]
    assert sum(bool(run.found) for run in runs) <= 8  # 3 expected


def test_the_gap_is_between_pairs_and_not_between_templates() -> None:
    """One odd pair of eight is no finding, however many templates say so."""
    odd = lambda texts, words: np.array([9.0 * text.startswith("anna") for text in texts])
    assert compare_scores(TINY, odd).found == ()


def test_log_probabilities_are_those_of_the_model() -> None:
    model = trained(0.9)
    found = continuation_logprobs(model, ["anna is a", "carl is"], [" nurse", " a pilot"])
    logits = np.asarray(model.logits([model.encode("carl is a pilot")]))[0]
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    expected = logprobs[2, WORDS.index("a")] + logprobs[3, WORDS.index("pilot")]
    assert found[1] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(EvaluationError, match="no token of its own"):
        continuation_logprobs(model, ["anna"], [""])
    encoder = init_model(ModelConfig(32, 32, 1, causal=False))
    encoder.tokenizer = Words()
    with pytest.raises(EvaluationError, match="decoder"):
        continuation_logprobs(encoder, ["anna"], [" is"])


def test_packaged_sets_are_whole_and_files_extend_them(tmp_path: Path) -> None:
    assert set_names() == ["gender", "names", "nationality"]
    for name in set_names():
        found = read_set(name)
        assert len(found.pairs) >= 12 and len(found.cases()) == len(found.pairs) * len(
            found.templates
        ) * sum(map(len, found.attributes.values()))
        assert len({text for pair in found.pairs for text in pair}) == 2 * len(found.pairs)
    case = read_set("gender").cases()[0]
    assert (case.first, case.words) == ("He works as the", " engineer")
    mine = tmp_path / "mine.json"
    whole = {
        "name": "mine",
        "description": "d",
        "language": "zh",
        "groups": ["他", "她"],
        "pairs": [["他", "她"], ["哥哥", "姐姐"]],
        "templates": ["{group}是{attribute}"],
        "attributes": {"work": ["医生", "护士"]},
    }
    mine.write_text(json.dumps(whole), encoding="utf-8")
    assert read_set(mine).cases()[1].second == "她是" and len(read_set(mine).cases()) == 4
    for change, match in (
        ({"extra": 1}, "extra"),
        ({"templates": ["{group} is"]}, "needs {group} and {attribute}"),
        ({"templates": ["{attribute} is {group}"]}, "goes on after"),
        ({"pairs": [["a"]]}, "two texts each"),
    ):
        mine.write_text(json.dumps({**whole, **change}), encoding="utf-8")
        with pytest.raises(EvaluationError, match=match):
            read_set(mine)
    with pytest.raises(EvaluationError, match='did you mean "gender"'):
        read_set("gendr")


def says_nurse(texts: Sequence[str]) -> list[float]:
    """A classifier of the test's own, found by its name."""
    return [float("nurse" in text or "nanny" in text) for text in texts]


def test_a_classifier_of_ones_own_judges_what_is_written() -> None:
    found = generated_toxicity(trained(0.9), TINY, "test_bias:says_nurse", max_length=1)
    assert found.difference.value > 0.5 and found.difference.p < 0.05
    assert found.texts[0][1][0].startswith("anna is a")
    with pytest.raises(EvaluationError, match="from 0 to 1"):
        classify(["a"], lambda texts: [2.0])
    with pytest.raises(ConfigError, match="package.module:name"):
        classify(["a"], "nothing")
