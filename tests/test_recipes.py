"""The recipes' data, of small inputs: what is held out, what is prompt and what is answer."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.evals.tasks.task import load_task

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def script(name: str) -> dict:
    return runpy.run_path(str(EXPERIMENTS / name))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_questions_of_a_subject_are_in_one_half(tmp_path: Path) -> None:
    make = script("questions/data.py")
    rows = [
        {
            "subject": f"subject {number // 3}",
            "question": f"Which is {number}?",
            "letters": list("ABCD"),
            "options": "A. 1\nB. 2\nC. 3\nD. 4",
            "answer": number % 4,
        }
        for number in range(21)
    ]
    counts = make["write"](rows, tmp_path)
    assert sorted(counts.values()) == [9, 9, 12, 12]  # of seven subjects, four and three
    subjects = [
        {row["subject"] for row in lines(tmp_path / f"asked{half}.jsonl")} for half in (0, 1)
    ]
    assert len(subjects[0]) + len(subjects[1]) == 7 and not subjects[0] & subjects[1]
    for half in (0, 1):
        asked = load_task(tmp_path / f"half{half}.toml")
        learned = lines(tmp_path / f"train{half}.jsonl")
        prompts = {asked.prompt_of(row, 0) for row in asked.examples()}
        assert len(prompts) + len(learned) == 21 and not prompts & {r["prompt"] for r in learned}
        for row in asked.examples():
            choices = asked.choices_of(row, 0)
            number = int(row["prompt"].split("?")[0].split()[-1])
            assert asked.answer_of(row, choices, 0) == number % 4
    one = next(row for row in lines(tmp_path / "train0.jsonl"))
    number = int(one["prompt"].split("?")[0].split()[-1])
    assert one["completion"] == " " + "ABCD"[number % 4] and one["prompt"].endswith("\nAnswer:")


def test_both_halves_as_one() -> None:
    compare = script("questions/both.py")["compare"]
    row = lambda at, predicted: {
        "prompt": str(at),
        "logprobs": [0.0, 0.0],
        "predicted": predicted,
        "answer": 0,
    }
    before, after = [row(i, 1) for i in range(20)], [row(i, i % 2) for i in range(20)]
    found = compare(before, after)
    assert found["accuracy"]["before"] == [0.0, 0.0, 0.0]
    value, low, high, p = found["accuracy"]["difference"]
    assert value == 0.5 and 0.2 < low < high < 0.8 and p < 0.01
    assert found["nats"]["before"][0] == round(float(np.log(2)), 4)
    with pytest.raises(ValueError, match="20 and 19 examples"):
        compare(before, after[1:])


SOURCE = '''
class A:
    def method(self, x):
        """Twice x.

        Of a whole number.
        """
        # why
        y = x
        return 2 * y

def short():
    """One line alone."""

def nothing(a):
    return a

def odd(): """doc"""; return 1
'''


def test_functions_end_their_head_with_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    make = script("code/data.py")
    monkeypatch.setitem(make["functions"].__globals__, "MIN_CHARS", 1)
    ((head, body),) = make["functions"](SOURCE)
    assert head.startswith('def method(self, x):\n    """Twice x.\n\n') and head.endswith('"""')
    assert body == "\n    # why\n    y = x\n    return 2 * y"
    scope: dict = {}
    exec(head + body, scope)
    assert scope["method"](None, 4) == 8


def test_modules_are_on_one_side() -> None:
    make = script("code/data.py")
    root = Path("/lib")
    twins = {make["module_of"](root / name, root) for name in ("decimal.py", "_pydecimal.py")}
    assert twins == {"decimal"} and make["module_of"](root / "json/decoder.py", root) == "json"
    names = [f"module{number}" for number in range(200)]
    held = [name for name in names if make["is_heldout"](name)]
    assert 25 < len(held) < 75
    learned = next(name for name in names if name not in held)
    found = [(learned, "head a", "body a"), (held[0], "head b", "body b")]
    found += [(held[0], "head c", "body a")]  # learned elsewhere
    found += [(held[1], f"head {number}", f"body {number}") for number in range(40)]
    train, kept = make["split"](found)
    assert train == [{"prompt": "head a", "completion": "body a"}]
    assert {row["module"] for row in kept} == {held[0], held[1]}
    assert sum(row["module"] == held[0] for row in kept) == 1
    assert sum(row["module"] == held[1] for row in kept) == make["MOST_OF_ONE"]


def said(*parts: tuple[str, str]) -> dict:
    return {"messages": [[{"sender": sender, "text": text}] for sender, text in parts]}


def test_conversations_take_turns() -> None:
    make = script("dialogue/data.py")
    talk = said(("a", "Hi"), ("b", "Hello "), ("b", "you"), ("a", "Where do you come from?"))
    talk["messages"] += said(("b", "Rome"), ("a", "x" * 500), ("b", "what"))["messages"]
    texts = make["turns"](talk)
    assert texts == ["Hi", "Hello you", "Where do you come from?", "Rome"]
    assert make["question"](texts) == ("Where do you come from?", "Rome")
    row = make["record"](texts[:3])
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    assert make["record"](["alone"]) is None and len(make["record"](["a"] * 11)["messages"]) == 8


def test_replies_to_choose_from_have_the_right_one() -> None:
    make = script("dialogue/data.py")
    ask = "What is the number of this question, {}?"
    talks = [[ask.format(number), f"It is {number}"] for number in range(30)]
    rows = list(make["heldout"](talks, {ask.format(7)}))
    assert len(rows) == 29 and not any("question, 7?" in row["question"] for row in rows)
    for row in rows:
        number = row["question"].split()[-1].rstrip("?")
        assert row["replies"][row["right"]] == row["reply"] == f"It is {number}"
        assert len(set(row["replies"])) == 4


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/*.toml")), ids=lambda p: p.stem)
def test_tasks_read(path: Path) -> None:
    assert load_task(path).metrics


def test_cost_per_byte(tmp_path: Path) -> None:
    script_of = script("dialogue/cost.py")
    record = {"continuations": ["ab", "abcd"], "answer": 1}
    for name, nats in (("a", 8.0), ("b", 4.0)):
        rows = ({**record, "index": i, "logprobs": [-1.0, -nats]} for i in (2, 0, 1))
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = script_of["compare"](*(script_of["rows_of"](tmp_path / name) for name in "ab"))
    assert found["before"][0] == round(float(np.exp(2)), 4)
    assert found["difference"][0] == round(float(np.exp(1) - np.exp(2)), 4)
