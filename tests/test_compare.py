"""Results beside each other: tests of their difference, refusals, and a page that stands alone."""

import json
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
    assert len(numbers) == 9 and all(200 <= x <= 670 for x in numbers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_hash": "other"}, "task quiz was not the same for small"),
        ({"num_examples": NUM + 1}, "run `llmasos eval` again"),
        ({"examples": "index.jsonl"}, "line 1 is no example .index '<b>' is no whole number"),
        ({"examples": None}, "has no examples beside it"),
        ({"model_hash": "small" * 8}, "has another result of quiz with the same weights, type"),
    ],
)
def test_what_cannot_be_compared_is_refused(paths, tmp_path, change, said):
    (tmp_path / "index.jsonl").write_text('{"index": "<b>"}\n')
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
