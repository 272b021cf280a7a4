"""Examples that are shown before the asked one: which, in what words, and what they change."""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from small_model import SMALL, small_model
from tolerances import SIMPLE

import llmasos
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.tasks.prompts import choose, prompts_of
from llmasos_jax.evals.tasks.task import Task, load_task
from llmasos_jax.generate.model import Model

ROWS = [{"q": q, "options": ["x", "yes"], "right": i % 2} for i, q in enumerate("abcdef")]
CHOICE = {"kind": "choice", "prompt": "{q}:", "choices": "options", "answer": "right"}


@functools.cache
def model() -> Model:
    return small_model(SMALL)


@pytest.fixture
def make(tmp_path: Path):
    """A task of these rows, and of some more in a file."""
    (tmp_path / "more").mkdir()
    for name, rows in {"rows": ROWS, "more/more": [*ROWS[:2], {**ROWS[0], "q": "new"}]}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)

    def task(**changes) -> Task:
        keys = {**CHOICE, "name": "t", "data": {"file": str(tmp_path / "rows.jsonl")}, **changes}
        match keys.get("fewshot"):
            case {"file": file} as fewshot:
                keys["fewshot"] = {**fewshot, "file": str(tmp_path / file)}
        return load_task({name: value for name, value in keys.items() if value is not None})

    return task


def asked(task: Task, count: int = len(ROWS)) -> list[str]:
    rows = task.examples()
    return [prompt.text for prompt in prompts_of(task, rows, task.shown_rows(rows), count)]


def test_examples_are_those_that_the_definition_draws(make):
    """Place n is SHA-256 of seed/index/n modulo the rows: any program can draw the same."""
    rows, task = ROWS, make(fewshot={"num": 2, "seed": 7, "separator": " | "})
    for index, prompt in enumerate(asked(task)):
        wanted, num = [], 0
        while len(wanted) < 2:
            digest = hashlib.sha256(f"7/{index}/{num}".encode()).digest()
            place, num = int.from_bytes(digest, "big") % len(rows), num + 1
            if place != index and place not in wanted:
                wanted.append(place)
        shown = [f"{rows[p]['q']}: {rows[p]['options'][rows[p]['right']]}" for p in wanted]
        assert prompt == " | ".join([*shown, f"{rows[index]['q']}:"])
    assert choose(list("abcdef"), 2, own="a", index=0, seed=7) == (2, 4)  # as drawn for ever
    assert asked(task, 2) == asked(task)[:2]
    assert asked(make(fewshot={"num": 2, "seed": 8})) != asked(make(fewshot={"num": 2, "seed": 7}))


def test_no_example_shows_its_own_answer(make):
    """All others are shown, and of a file that holds it too, only what is not it."""
    for index, prompt in enumerate(asked(make(fewshot={"num": 5}))):
        own = ROWS[index]["q"]
        assert prompt.endswith(f"\n\n{own}:") and prompt.count(f"{own}:") == 1
        assert sorted(prompt.split("\n\n")[:-1]) == sorted(
            f"{row['q']}: {row['options'][row['right']]}" for row in ROWS if row["q"] != own
        )
    found = asked(make(fewshot={"num": 2, "file": "more/more.jsonl"}), 3)
    assert sorted(found[0].split("\n\n")) == ["a:", "b: yes", "new: x"]
    assert sorted(found[1].split("\n\n")) == ["a: x", "b:", "new: x"]
    with pytest.raises(EvaluationError, match="fewshot.num=6, but 5 other prompts"):
        asked(make(fewshot={"num": 6}))


def test_what_is_scored_is_the_choice_after_all_that_is_shown(make):
    task = make(fewshot={"num": 2})
    result = llmasos.evaluate(model(), task)
    for row, record, prompt in zip(ROWS, result.records, asked(task), strict=True):
        assert record["prompt"] == prompt and len(record["shown"]) == 2
        for place, text in zip(record["shown"], prompt.split("\n\n"), strict=False):
            assert text.startswith(ROWS[place]["q"])
        if record["index"] > 1:
            continue  # of two it is enough: each is a compile
        totals = []
        for choice in row["options"]:
            ids, num = model().encode(f"{prompt} {choice}"), len(model().encode(prompt))
            logits = np.asarray(model().logits([ids]), np.float64)[0]
            logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            totals.append(sum(logp[place - 1, ids[place]] for place in range(num, len(ids))))
        np.testing.assert_allclose(record["logprobs"], totals, rtol=SIMPLE)
    wanted = {"num": 2, "seed": 0, "separator": "\n\n", "file": None}
    assert result.settings["fewshot"] == wanted
    limited = llmasos.evaluate(model(), task, limit=2)
    assert [r["prompt"] for r in limited.records] == [r["prompt"] for r in result.records[:2]]


def test_a_written_answer_is_shown_as_the_first_that_is_right(make):
    task = make(
        kind="generation", prompt="{q} =", choices=None, answer="options", max_length=1,
        fewshot={"num": 1, "separator": "\n"},
    )  # fmt: skip
    for record in llmasos.evaluate(model(), task, limit=2).records:
        (place,) = record["shown"]
        assert record["prompt"] == f"{ROWS[place]['q']} = x\n{ROWS[record['index']]['q']} ="


def test_the_hash_is_of_what_is_shown(make, tmp_path):
    def key(**fewshot) -> str:
        task = make(fewshot=fewshot or None)
        rows = task.examples()
        return task.fingerprint(rows, task.shown_rows(rows))

    keys = [key(), key(num=1), key(num=2), key(num=1, seed=1), key(num=1, separator="\n")]
    keys.append(key(num=1, file="more/more.jsonl"))
    assert len(set(keys)) == 6 and key(num=1, seed=0) == keys[1]
    (tmp_path / "same.jsonl").write_bytes((tmp_path / "more/more.jsonl").read_bytes())
    assert key(num=1, file="same.jsonl") == keys[5]
    (tmp_path / "same.jsonl").write_text(json.dumps({**ROWS[0], "q": "other"}) + "\n")
    assert key(num=1, file="same.jsonl") != keys[5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fewshot": 3}, "fewshot=3 is a int, expected Mapping"),
        ({"fewshot": {}}, "give num, 1 or more"),
        ({"fewshot": {"num": 0}}, "give num, 1 or more"),
        ({"fewshot": {"num": True}}, "fewshot.num=True is a bool, expected int"),
        ({"fewshot": {"num": 1, "sead": 2}}, 'fewshot has no key "sead"; did you mean "seed"'),
        ({"fewshot": {"num": 1, "file": "none.jsonl"}}, "none.jsonl cannot be read"),
        (
            {"kind": "perplexity", "choices": None, "fewshot": {"num": 1}},
            "a perplexity task has fewshot",
        ),
        ({"fewshot": {"num": 1}, "answer": "q"}, "expected one of ['x', 'yes'] or its place"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(make, changes, said):
    with pytest.raises(EvaluationError) as found:
        asked(make(**changes))
    assert said in str(found.value) and "\n" not in str(found.value)
