"""Results beside each other: tests of their difference, refusals, and a page that stands alone."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.cli import main as cli
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.report.compare import compare
from llmasos_jax.evals.report.page import page
from llmasos_jax.evals.tasks.result import TaskResult
from llmasos_jax.evals.tasks.run import figures

NUM = 120
VOID = {"meta", "br", "line", "circle"}


def choices(share: float, seed: int) -> list[dict]:
    """Records of a system that is right so often; the questions are the same."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(NUM):
        answer = index % 3
        predicted = answer if rng.random() < share else (answer + 1) % 3
        logprobs = [-2.0 + 1.5 * (place == predicted) for place in range(3)]
        row = {
            "index": index,
            "prompt": f"Is {index} < 3 & odd?",
            "continuations": [" a", " b", " c"],
        }
        rows.append({**row, "answer": answer, "logprobs": logprobs, "predicted": predicted})
    return rows


def losses(level: float, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(9).normal(0, 0.3, NUM)
    return [
        {
            **{"index": i, "prompt": f"text {i}", "tokens": 10, "bytes": 40, "words": 8},
            "nats": float(10 * (level + base[i] + rng.normal(0, 0.02))),
        }
        for i in range(NUM)
    ]


def write(folder: Path, system: str, task: str, records: list[dict], **changes) -> Path:
    kind = "choice" if "answer" in records[0] else "perplexity"
    metrics = ["accuracy", "calibration_error"] if kind == "choice" else ["perplexity"]
    file = folder / f"{task}-{system}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in reversed(records)))
    fields = {
        **{"task": task, "task_hash": f"{task}0" * 8, "model": system, "model_hash": system * 8},
        **{"metrics": figures(metrics, records, 0), "num_examples": len(records), "seed": 0},
        **{"num_truncated": 0, "settings": {"kind": kind}, "versions": {"jax": "1"}},
        **{"seconds": 1.0, "examples": file.name},
    }
    path = file.with_suffix(".json")
    path.write_text(TaskResult(**{**fields, **changes}).to_json())
    return path


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for name, share, level in (("small", 0.5, 3.0), ("<large>", 0.8, 2.8), ("twin", 0.5, 3.0)):
        seed = sum(map(ord, name))
        found.append(write(tmp_path, name, "quiz", choices(share, seed)))
        found.append(write(tmp_path, name, "text", losses(level, seed)))
    return found


def test_what_is_better_is_found_and_what_is_not_is_not(paths):
    found = compare(paths)
    said = {(p.metric, p.system): p.is_better for p in found.pairs}
    assert said["accuracy", 1] is True and said["perplexity", 1] is True
    assert said["accuracy", 2] is None and said["perplexity", 2] is None
    assert found.threshold == 0.05 / 6
    (pair,) = [p for p in found.pairs if (p.metric, p.system) == ("accuracy", 1)]
    whole = found.intervals["quiz", "accuracy"]
    assert pair.difference.value == pytest.approx(whole[1].value - whole[0].value)
    assert pair.difference.low < pair.difference.value < pair.difference.high
    assert "better" in str(found) and "no difference shown" in str(found)
    assert compare(paths).to_dict() == found.to_dict()
    # Of 10 draws no p is below 1 / 11, which would never count beside 5 other tests.
    few = {(p.metric, p.system): p.is_better for p in compare(paths, samples=10).pairs}
    assert few["accuracy", 1] is True and few["perplexity", 1] is True


class Checker(HTMLParser):
    """Every tag is closed, and nothing is asked of another place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "xlink:href")
            assert "url(" not in (value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_what_differs(paths):
    found = compare(paths)
    text = page(found)
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and checker.seen.count("svg") == 3
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert "<large>" not in text and "&lt;large&gt;" in text and "Is 1 &lt; 3 &amp; odd?" in text
    quiz = found.results["quiz"]
    records = zip(*(result.records for result in quiz), strict=True)
    parting = sum(len({r["predicted"] for r in some}) > 1 for some in records)
    assert f"Examples that differ ({parting} of {NUM} shown)" in text
    numbers = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    assert len(numbers) == 9 and all(220 <= x <= 670 for x in numbers)
    # What an axis says is a value that occurs: none of an accuracy is below 0 or above 1.
    ends = [float(x) for x in re.findall(r'text-anchor="middle">([^<]+)<', text)]
    occur = [v for some in found.intervals.values() for i in some for v in (i.low, i.high)]
    assert len(ends) == 9 and all(
        any(abs(end - value) <= 0.006 * abs(value) for value in occur)
        for end in ends[::3] + ends[2::3]
    )


def test_a_page_of_equal_answers_says_so(tmp_path):
    records = [{**row, "predicted": 0, "logprobs": [0.0, -2.0, -2.0]} for row in choices(0.5, 1)]
    text = page(compare([write(tmp_path, name, "quiz", records) for name in ("a", "b")]))
    assert (
        "No example was answered better by one than by another." in text
        and "Examples that differ" not in text
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_hash": "other"}, "task quiz was not the same for small"),
        ({"num_examples": NUM + 1}, "run `llmasos eval` again"),
        ({"examples": "index.jsonl"}, 'line 1 is no example ."prompt" is missing'),
        ({"examples": None}, "has no examples beside it"),
        ({"model_hash": "small" * 8}, "has another result of quiz with the same weights, type"),
    ],
)
def test_what_cannot_be_compared_is_refused(paths, tmp_path, change, said):
    (tmp_path / "index.jsonl").write_text('{"index": 0}\n')
    other = write(tmp_path, "third", "quiz", choices(0.5, 3), **change)
    with pytest.raises(EvaluationError, match=said) as found:
        compare([paths[0], other])
    assert "\n" not in str(found.value)


def test_one_model_and_a_task_that_lacks_are_refused(paths):
    with pytest.raises(EvaluationError, match="1 model in 2 results"):
        compare(paths[:2])
    with pytest.raises(EvaluationError, match="task text has no result of <large>"):
        compare(paths[:3])


def test_the_command_line_writes_the_page(paths, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    words = ["eval", "compare", *map(str, paths), f"--out={out}"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["systems"] == ["small", "<large>", "twin"] and len(found["pairs"]) == 6
    assert out.read_text().startswith("<!doctype html>")
    assert cli.main(words) == 0 and "A  small" in capsys.readouterr().out
    assert cli.main(["eval", "compare", str(paths[0])]) == 2
    assert "two or more .json files" in capsys.readouterr().err


NO_RESULT = "is no result of `llmasos eval` ("
# What a file is changed to (bytes, fields of the result, or of its record 3), and what is said.
HOSTILE = [
    (b"", NO_RESULT + "Expecting value"),
    (b'{"task": "quiz", "task_ha', NO_RESULT + "Unterminated string"),
    (b"[" * 100_000, NO_RESULT),
    (b"\xff\xfe\x00", NO_RESULT),
    (b"[]", NO_RESULT + "it is [], expected a table"),
    ({"task": None}, '"task" is None, expected a text'),
    ({"task_hash": ...}, '"task_hash" is missing'),
    ({"more": 1}, "'more' is no field of it"),
    ({"num_examples": True}, '"num_examples" is True, expected a whole number'),
    ({"num_examples": 10**15}, f"has {NUM} of the 1000000000000000 examples"),
    ({"num_examples": 0}, "has 0 of the 0 examples"),
    ({"num_examples": 10**400}, "a huge number, expected a whole number"),
    ({"examples": "../quiz-b.jsonl"}, "expected the name of a file beside this one"),
    ({"examples": "\ud800"}, "expected the name of a file beside this one"),
    ({"logprobs": [1e308] * 3}, '"logprobs" is [1e+308, 1e+308, 1e+308], expected'),
    ({"examples": "none.jsonl"}, "none.jsonl cannot be read"),
    ({"settings": {"kind": ["choice"]}}, '"settings.kind" is ['),
    ({"settings": {"kind": "generation"}}, "'accuracy' is no metric of generation"),
    ({"metrics": {}}, '"metrics" is empty'),
    ({"metrics": {"acuracy": {}}}, 'did you mean "accuracy"'),
    ({"metrics": {"accuracy": 0.5}}, 'of "metrics.accuracy" it is 0.5, expected a table'),
    (
        {"metrics": {"accuracy": {"value": float("nan"), "low": 0, "high": 1, "signature": None}}},
        '"value" is nan, expected a finite number',
    ),
    ({"task_hash": "another"}, "task quiz was not the same for a"),
    ({"task": "other"}, "has no result of"),
    ({"model": "two\nlines", "task_hash": "another"}, "task quiz was not the same for a"),
    ({"index": "3"}, """line 4 is no example ("index" is '3'"""),
    ({"index": 4}, f"has {NUM - 1} of the {NUM} examples"),
    ({"prompt": 3}, 'line 4 is no example ("prompt" is 3'),
    ({"prompt": "another"}, 'task quiz, example 3: "prompt" is not the same'),
    ({"answer": 1}, 'task quiz, example 3: "answer" is not the same'),
    ({"continuations": [" a", " b", " d"]}, 'task quiz, example 3: "continuations" is not'),
    ({"continuations": []}, '"continuations" is [], expected a list of at least one'),
    ({"answer": 3}, '"answer" is 3, expected 0 to 2'),
    ({"predicted": -1}, '"predicted" is -1, expected a whole number, 0'),
    ({"predicted": ...}, '"predicted" is missing'),
    ({"logprobs": [-1.0, -2.0]}, '"logprobs" has 2, "continuations" 3'),
    ({"logprobs": [-1.0, float("-inf"), None]}, '"logprobs" is [-1.0, -inf, None], expected'),
    ({"logprobs": "abc"}, "\"logprobs\" is 'abc', expected a list"),
]


@pytest.mark.parametrize(("change", "said"), HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, capsys, change, said):
    records = {name: choices(0.5, seed) for seed, name in enumerate("ab")}
    records["b"].reverse()  # `write` turns them, so that line 4 is example 3
    paths = [write(tmp_path, name, "quiz", records[name]) for name in "ab"]
    if isinstance(change, bytes):
        paths[1].write_bytes(change)
    else:
        lines = paths[1].with_suffix(".jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        fields = json.loads(paths[1].read_text())
        of = records[3] if set(change) & set(records[3]) else fields
        of.update(change)
        for part in (fields, records[3]):
            for name in [name for name, value in part.items() if value is ...]:
                del part[name]
        paths[1].write_text(json.dumps(fields))
        lines[3] = json.dumps(records[3])
        paths[1].with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "page.html"
    assert cli.main(["eval", "compare", *map(str, paths), f"--out={out}"]) == 2
    found = capsys.readouterr()
    assert (
        said in found.err
        and found.err.count("\n") == 1
        and found.err.startswith("llmasos: error: ")
    )
    assert not found.out and not out.exists()


def test_what_the_table_of_hostile_files_changes_was_right(tmp_path):
    paths = [write(tmp_path, name, "quiz", choices(0.5, seed)) for seed, name in enumerate("ab")]
    assert [len(result.records) for result in compare(paths).results["quiz"]] == [NUM, NUM]


def test_a_truncated_line_of_examples_is_one_too_few(tmp_path):
    paths = [write(tmp_path, name, "quiz", choices(0.5, seed)) for seed, name in enumerate("ab")]
    file = paths[0].with_suffix(".jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(EvaluationError, match=f"has {NUM - 1} of the {NUM} examples"):
        compare(paths)


def test_a_hopeless_model_can_be_compared(tmp_path):
    """Its perplexity is cut at exp(700), which is a figure like any other."""
    paths = [
        write(tmp_path, name, "text", losses(level, 1)) for name, level in (("a", 3), ("b", 1e6))
    ]
    found = compare(paths, samples=10)
    assert found.intervals["text", "perplexity"][1].value == pytest.approx(math.exp(700))
