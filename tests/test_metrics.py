"""Metrics against the packages that define them, against hand-computed values, and wrong input."""

import functools
import json
import math
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from small_model import FAMILIES, SMALL, small_model
from tolerances import SIMPLE

from llmasos_jax import evals
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.intervals import mean
from llmasos_jax.evals.metrics.perplexity import windows
from llmasos_jax.evals.metrics.scorer import Question, Scorer
from llmasos_jax.evals.metrics.summaries import WordsOfAnyScript
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.load import init_model
from llmasos_jax.generate.model import Model

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "conformance"))

ENGLISH = ["The cat sat on the mat, didn't it?", "A naïve café: 3.5 km away.", "Short."]
OTHERS = ["A cat sat on that mat, did it?", "The naive cafe is 3.5 km off.", "Long"]
CHINESE = ["你好，世界！今天天气很好。", "他们在图书馆里读书。"]
UNRELATED = ["股票市场昨日下跌。", "请把门关上吧！"]
PREFIX = SMALL.replace(prefix_lm=True)


@functools.cache
def model_of(name: str) -> Model:
    return small_model(PREFIX if name == "prefix" else FAMILIES[name])


@functools.cache
def scorer_of(name: str) -> Scorer:
    return Scorer(model_of(name)._weights)


def log_probabilities(model: Model, ids: list[int], prefix: int | None = None) -> np.ndarray:
    """Of each next token, float64 [T, V], by the whole forward pass."""
    more = {} if prefix is None else {"prefix_lengths": [prefix]}
    logits = np.asarray(model.logits([ids], **more), np.float64)[0]
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def questions(seed: int, shapes: list[tuple[int, list[int]]]) -> list[Question]:
    rng = np.random.default_rng(seed)
    draw = lambda num: rng.integers(0, 256, num).tolist()
    return [Question(draw(n), [draw(m) for m in more]) for n, more in shapes]


# One row, several of one token, several of more; of two lengths, so that some are padded.
SHAPES = [(25, [7]), (22, [1, 1, 1]), (31, [1]), (17, [3, 1, 7, 2]), (9, [2, 2])]


@pytest.mark.parametrize("name", ["learned", "windows", "prefix"])
def test_scores_are_the_log_softmax_of_the_whole_forward_pass(name):
    model, asked = model_of(name), questions(1, SHAPES if name == "windows" else SHAPES[3:])
    found = scorer_of(name).score(asked)
    for question, scores in zip(asked, found, strict=True):
        for continuation, scored in zip(question.continuations, scores, strict=True):
            n = len(question.context)
            ids = [*question.context, *continuation]
            logp = log_probabilities(model, ids, n if name == "prefix" else None)[n - 1 : -1]
            expected = logp[np.arange(len(continuation)), continuation]
            np.testing.assert_allclose(scored.tokens, expected, atol=SIMPLE, rtol=SIMPLE)
            assert scored.is_greedy == (logp.argmax(1) == continuation).all()
            assert scored.total == pytest.approx(expected.sum(), rel=SIMPLE)


def test_the_likeliest_continuation_is_greedy():
    model, context = model_of("windows"), [7, 8, 9]
    ids = list(context)
    for _ in range(4):
        ids.append(int(log_probabilities(model, ids)[-1].argmax()))
    (scores,) = scorer_of("windows").score([Question(context, [ids[3:], [1, 2], ids[3:5]])])
    assert [s.is_greedy for s in scores] == [True, False, True]


def test_the_same_shapes_compile_once(compiles):
    scorer = scorer_of("windows")
    scorer.score(questions(1, SHAPES))
    compiles.reset()
    scorer.score(questions(2, SHAPES))
    assert compiles.count == 0


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question([], [[1]]), "0 tokens of context"),
        (Question([1], [[1], []]), r"continuations of \[1, 0\]"),
        (Question([1], []), "each needs at least one"),
        (Question([1] * 90, [[1] * 8]), "has 97 tokens; the model's context holds 96"),
    ],
)
def test_a_question_that_cannot_be_scored_is_refused(question, said):
    with pytest.raises(EvaluationError, match=said):
        scorer_of("windows").score([question])


def test_an_encoder_is_refused():
    cfg = ModelConfig(259, 64, 1, causal=False)
    encoder = init_model(Manifest("bert", cfg, tokenizer={"kind": "bytes"}))
    with pytest.raises(EvaluationError, match='model "bert" is no decoder with a head'):
        evals.perplexity(encoder, ["text"])


@pytest.mark.parametrize(("window", "stride"), [(None, None), (32, None), (16, 13)])
def test_perplexity_is_what_the_definition_says(window, stride):
    model = model_of("windows")
    texts = ["你好 world. " * 5, "a", ""]
    found = evals.perplexity(model, texts, window=window, stride=stride)
    nats = tokens = 0
    for ids in map(model.encode, texts):
        size = window or 96
        step = stride or size // 2
        done = 1
        for begin in range(0, len(ids), step):  # as transformers' page on perplexity has it
            end = min(begin + size, len(ids))
            logp = log_probabilities(model, ids[begin:end])
            for place in range(done, end):
                nats -= logp[place - begin - 1, ids[place]]
                tokens += 1
            done = end
            if end == len(ids):
                break
    num_bytes = sum(len(text.encode()) for text in texts)
    assert found.details["tokens"] == tokens == num_bytes
    assert found == pytest.approx(math.exp(nats / tokens), rel=SIMPLE)
    assert found.details["per_byte"] == pytest.approx(math.exp(nats / num_bytes), rel=SIMPLE)
    assert found.details["per_word"] == pytest.approx(math.exp(nats / 11), rel=SIMPLE)


def test_windows_score_each_token_once_with_enough_before_it():
    ids = list(range(50))
    for window, stride in [(2, 1), (7, 3), (50, 20), (60, 59), (49, 48)]:
        seen = []
        for number, (before, scored) in enumerate(windows(ids, window, stride)):
            assert len(before) + len(scored) <= window
            assert number == 0 or len(before) >= window - stride
            assert scored[0] == before[-1] + 1
            seen += scored
        assert seen == ids[1:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 97}, "window=97 is not possible; give 2 to 96"),
        ({"window": 1}, "window=1 "),
        ({"stride": 0}, "stride=0 "),
        ({"window": 8, "stride": 8}, "stride=8 is not possible with window=8; give 1 to 7"),
        ({"stride": 1.5}, "stride=1.5 is not possible; give a whole number"),
    ],
)
def test_windows_out_of_range_are_refused(options, said):
    with pytest.raises(EvaluationError, match=said):
        evals.perplexity(model_of("windows"), "text", **options)


def test_a_corpus_without_a_token_is_refused():
    with pytest.raises(EvaluationError, match="no token to score"):
        evals.perplexity(model_of("windows"), ["", ""])


def test_f1_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 4, 50).tolist(), rng.integers(0, 3, 50).tolist()
    for average in ("macro", "micro"):
        expected = metrics.f1_score(labels, predictions, average=average, zero_division=0)
        assert evals.f1(predictions, labels, average=average) == pytest.approx(expected)
    expected = metrics.f1_score(labels, predictions, labels=[2], average="macro")
    assert evals.f1(predictions, labels, positive=2) == pytest.approx(expected)
    assert evals.accuracy(predictions, labels) == metrics.accuracy_score(labels, predictions)


def test_calibration_by_hand():
    # Bins of 0.2: (0.4, 0.6] has three, mean 0.5, hits 1/3; (0.8, 1] has two, mean 0.95, hits 1.
    found = evals.calibration_error([0.41, 0.49, 0.6, 0.9, 1.0], [1, 0, 0, 1, 1], bins=5)
    assert found == pytest.approx((3 * (0.5 - 1 / 3) + 2 * 0.05) / 5)
    assert evals.calibration_error([0.0, 1.0], [False, True]) == 0
    # 0.07 is of (0.06, 0.07], though 0.07 * 100 is above 7 in floating point.
    found = evals.calibration_error([0.07, 0.065], [1, 0], bins=100)
    assert found == pytest.approx((1 - 0.135) / 2)
    with pytest.raises(EvaluationError, match="a confidence is 1.1"):
        evals.calibration_error([1.1], [1])


@pytest.mark.parametrize("name", ["accuracy", "f1", "exact_match", "bleu", "chrf", "rouge"])
def test_lists_that_do_not_fit_are_refused(name):
    run = getattr(evals, name)
    for given, said in [((["a"], []), "1 "), (([], []), "at least one"), (("a", "b"), "is a str")]:
        with pytest.raises(EvaluationError, match=said) as found:
            run(*given)
        assert "\n" not in str(found.value)


def test_bleu_and_chrf_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    found = evals.bleu(ENGLISH, [[a, b] for a, b in zip(OTHERS, ENGLISH[1:] + ["x"], strict=True)])
    streams = [OTHERS, ENGLISH[1:] + ["x"]]
    expected = sacrebleu.corpus_bleu(ENGLISH, streams)
    assert found == expected.score and found.details["precisions"] == expected.precisions
    assert found.signature.startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert evals.chrf(ENGLISH, OTHERS) == sacrebleu.corpus_chrf(ENGLISH, [OTHERS]).score
    plus = sacrebleu.CHRF(word_order=2).corpus_score(ENGLISH, [OTHERS]).score
    assert evals.chrf(ENGLISH, OTHERS, word_order=2) == plus
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.signature, again.details) == (found, found.signature, found.details)
    with pytest.raises(EvaluationError, match='tokenize="13b" is no tokenizer; did you mean "13a"'):
        evals.bleu(ENGLISH, OTHERS, tokenize="13b")


def test_chinese_scores_the_maximum_with_itself_and_nothing_with_others():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    for texts in (CHINESE, ["你好"], ["好"]):
        assert evals.bleu(texts, texts) == pytest.approx(100)
        assert evals.chrf(texts, texts) == pytest.approx(100)
        assert evals.rouge(texts, texts)["rougeLsum"] == 1
    assert evals.bleu([""], ["a"]) == 0
    assert "eff:yes" in evals.bleu(["你好"], ["你好"]).signature
    assert "tok:zh" in evals.bleu(CHINESE, UNRELATED).signature
    assert evals.bleu(CHINESE, UNRELATED) < 6 and evals.chrf(CHINESE, UNRELATED) < 6
    assert evals.rouge(CHINESE, UNRELATED)["rouge2"] == 0


def test_rouge_on_english_is_that_of_rouge_score():
    scoring = pytest.importorskip("rouge_score.rouge_scorer")
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = scoring.RougeScorer(kinds)
    hypotheses = [*ENGLISH, "One line.\nAnother line."]
    references = [*OTHERS, "Another line here.\nOne line."]
    found = evals.rouge(hypotheses, references)
    rows = [scorer.score(r, h) for h, r in zip(hypotheses, references, strict=True)]
    for kind in kinds:
        assert found[kind] == pytest.approx(np.mean([row[kind].fmeasure for row in rows]))
    best = evals.rouge(["a b"], [["x", "a b"]])
    assert best["rouge2"] == 1
    accents = ["cafe\u0301 nai\u0308ve"], ["cafe nai ve"]
    plain = scorer.score(accents[1][0], accents[0][0])["rouge1"].fmeasure
    assert evals.rouge(*accents)["rouge1"] == pytest.approx(plain) and plain == 1
    words = WordsOfAnyScript().tokenize("हिन्दी ВПЕРЁД 東京タワー ½ 한국어")
    assert words == ["हिन्दी", "вперёд", "東", "京", "タ", "ワ", "ー", "½", "한국어"]


def test_a_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = evals.bootstrap(rng.random(80) < 0.3, seed=seed, samples=200)
        hits += found.low <= 0.3 <= found.high
    assert 180 <= hits <= 198
    again = evals.bootstrap([1.0, 2.0, 4.0], seed=3)
    assert again == evals.bootstrap([1.0, 2.0, 4.0], seed=3) and again.value == pytest.approx(7 / 3)


def test_paired_tests_find_a_difference_and_none():
    rng = np.random.default_rng(1)
    a = (rng.random(300) < 0.5).astype(float)
    better = np.where(rng.random(300) < 0.15, 1.0, a)
    shuffled = rng.permutation(a)
    for test in (evals.paired_bootstrap, evals.permutation):
        found = test(a, better)
        assert (
            found.p < 0.01 and found.low > 0 and found.value == pytest.approx((better - a).mean())
        )
        assert test(a, shuffled).p > 0.05
        assert test(a, a).p == 1
    # Of two examples that both went one way, a coin does as well half of the time.
    assert evals.permutation([0.0, 0.0], [1.0, 1.0]).p == pytest.approx(0.5, abs=0.06)
    # Rounding, which grows with the figures, hides none of the samples that are as far.
    a, b = np.array([1000.1, 1000.3]), np.array([1000.1, 1000.3]) + 1e-6
    assert evals.permutation(a, b).p == pytest.approx(0.5, abs=0.06)
    # The metric of sums: a ratio, with more weight on longer examples.
    rows = np.array([[1.0, 1.0], [30.0, 10.0]])
    assert evals.bootstrap(rows, mean).value == pytest.approx(31 / 11)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: evals.bootstrap([]), "no examples"),
        (lambda: evals.bootstrap([1.0], level=95), "level=95"),
        (lambda: evals.bootstrap([1.0], samples=0), "samples=0"),
        (lambda: evals.permutation([1.0], [1.0, 2.0]), "A has 1 examples and B 2"),
        (lambda: evals.bootstrap([[1.0]]), r"rows are \[1, 1\]"),
        (lambda: evals.f1([0], [0]), "positive class 1 is neither"),
        (lambda: evals.f1([0], [0], average="mean"), 'average="mean"'),
        (lambda: evals.calibration_error([0.5], [1], bins=0), "bins=0"),
        (lambda: evals.exact_match(["1"], [1]), r"example 0 has '1' with references \[1\]"),
        (lambda: evals.bleu(["1"], [None]), r"references \[None\]; give a text"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(run, said):
    with pytest.raises(EvaluationError, match=said) as found:
        run()
    assert "\n" not in str(found.value)


def test_public_names_have_a_home_and_import_nothing_heavy():
    assert sorted(evals._HOMES) == sorted(evals.__all__)
    for name in evals.__all__:
        assert callable(getattr(evals, name))
    code = "import sys, llmasos; llmasos.evals.accuracy; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_the_kits_metrics_pass_and_a_wrong_one_does_not(monkeypatch):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    import check_metrics
    import llmasos_metrics

    cases = json.loads((ROOT / "conformance" / "metrics.json").read_text())
    assert {case["metric"] for case in cases} >= {"perplexity", "bleu", "rouge", "f1"}
    for case in cases:
        assert check_metrics.problem(llmasos_metrics.answer(case), case["expected"]) == "", case
        wrong = {name: value * 1.001 + 0.001 for name, value in case["expected"].items()}
        assert check_metrics.problem(wrong, case["expected"])
