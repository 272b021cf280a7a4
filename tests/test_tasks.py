"""Tasks: what is asked, what is kept, going on, and one line for what is wrong."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from small_model import SMALL, small_model
from tolerances import SIMPLE

import llmasos
from llmasos_jax.cli import main as cli
from llmasos_jax.errors import DataError, EvaluationError, LLMasOSError
from llmasos_jax.evals.metrics.scorer import Scorer, scorer_of
from llmasos_jax.evals.tasks import run
from llmasos_jax.evals.tasks.builtin import BUILTIN
from llmasos_jax.evals.tasks.measures import measure
from llmasos_jax.evals.tasks.pairs import encode_pairs
from llmasos_jax.evals.tasks.result import read_result
from llmasos_jax.evals.tasks.run import fingerprint
from llmasos_jax.evals.tasks.task import load_task
from llmasos_jax.generate.model import Model

ROWS = [
    {"q": "ab", "options": ["x", "yes", "zz"], "right": 1, "text": "one two"},
    {"q": "一二", "options": ["no", "maybe"], "right": "no", "text": "三"},
    {"q": "a longer one, of two windows", "options": ["u", "v"], "right": 0, "text": "more"},
    {"q": "d", "options": ["same", "other"], "right": 1, "text": "last one"},
]
CHOICE = {
    "kind": "choice",
    "prompt": "Q: {q}\nA:",
    "choices": "options",
    "answer": "right",
    "metrics": ["accuracy", "accuracy_per_byte", "f1_macro", "calibration_error"],
}
WRITE = {
    "kind": "generation",
    "prompt": "{q}",
    "answer": "text",
    "metrics": ["exact_match", "exact_match_normalized"],
    "max_length": 3,
    "temperature": 1.0,
}
LOSS = {
    "kind": "perplexity",
    "prompt": "{text}!",
    "metrics": ["perplexity", "perplexity_per_byte", "perplexity_per_word"],
    "window": 6,
    "stride": 3,
}


@functools.cache
def model() -> Model:
    return small_model(SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    for name, keys in {"choice": CHOICE, "write": WRITE, "loss": LOSS}.items():
        text = json.dumps({**keys, "data": {"file": "rows.jsonl"}})
        (tmp_path / f"{name}.json").write_text(text)
    return tmp_path


def test_choices_are_scored_as_the_whole_forward_pass_scores_them(folder):
    result = llmasos.evaluate(model(), folder / "choice.json")
    hits = 0
    for row, record in zip(ROWS, result.records, strict=True):
        totals = []
        for choice in row["options"]:
            prompt = f"Q: {row['q']}\nA:"
            ids = model().encode(f"{prompt} {choice}")
            logits = np.asarray(model().logits([ids]), np.float64)[0]
            logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            places = range(len(model().encode(prompt)), len(ids))
            totals.append(sum(logp[place - 1, ids[place]] for place in places))
        np.testing.assert_allclose(record["logprobs"], totals, rtol=SIMPLE)
        right = (
            row["options"].index(row["right"]) if isinstance(row["right"], str) else row["right"]
        )
        hits += int(np.argmax(totals)) == right == record["answer"]
    assert result.metrics["accuracy"].value == hits / 4
    assert 0 <= result.metrics["calibration_error"].value <= 1


def test_a_perplexity_task_is_the_perplexity(folder):
    result = llmasos.evaluate(model(), folder / "loss.json")
    texts = [f"{row['text']}!" for row in ROWS]
    expected = llmasos.evals.perplexity(model(), texts, window=6, stride=3)
    assert result.metrics["perplexity"].value == pytest.approx(expected, rel=SIMPLE)
    for name in ("per_byte", "per_word"):
        found = result.metrics[f"perplexity_{name}"].value
        assert found == pytest.approx(expected.details[name], rel=SIMPLE)


def test_figures_of_a_task_are_those_of_the_metrics():
    """Short texts, a class that one model alone names, texts without a token."""
    pytest.importorskip("sacrebleu")
    pairs = [("你好", "你好"), ("再见", "再会")]
    short = [{"text": text, "references": [wanted]} for text, wanted in pairs]
    (found,) = measure("bleu", short)
    expected = llmasos.evals.bleu(*zip(*pairs, strict=True))
    assert found.value == expected > 0 and found.signature == expected.signature
    named = lambda labels: [{"predicted": p, "answer": y} for p, y in labels]
    a, b = named([(0, 0), (1, 0), (1, 1)]), named([(0, 0), (4, 0), (1, 1)])
    expected = llmasos.evals.f1([0, 1, 1], [0, 0, 1], average="macro")
    assert measure("f1_macro", a, b)[0].value == measure("f1_macro", a)[0].value == expected
    with pytest.raises(EvaluationError, match="no tokens to score"):
        measure("perplexity", [{"nats": 0.0, "tokens": 0}])
    with pytest.raises(EvaluationError, match='did you mean "accuracy"'):
        measure("acuracy", a)


def test_texts_are_the_same_whatever_was_there_already(folder, tmp_path):
    whole = llmasos.evaluate(model(), folder / "write.json", seed=5)
    some = llmasos.evaluate(model(), folder / "write.json", seed=5, limit=2, out=tmp_path / "r")
    assert [r["text"] for r in some.records] == [r["text"] for r in whole.records[:2]]
    rest = llmasos.evaluate(model(), folder / "write.json", seed=5, out=tmp_path / "r")
    assert [r["text"] for r in rest.records] == [r["text"] for r in whole.records]
    other = llmasos.evaluate(model(), folder / "write.json", seed=6)
    assert [r["text"] for r in other.records] != [r["text"] for r in whole.records]


def test_a_run_that_was_killed_is_gone_on_with(folder, tmp_path, monkeypatch):
    out, task = tmp_path / "results", folder / "choice.json"
    asked = []
    real = Scorer.stream

    def spy(self, questions):
        asked.append(len(questions))
        for number, found in enumerate(real(self, questions)):
            if len(asked) == 1 and number == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Scorer, "stream", spy)
    with pytest.raises(KeyboardInterrupt):
        llmasos.evaluate(model(), task, out=out)
    (file,) = out.glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 2
    with open(file, "ab") as opened:
        opened.write(b'{"index": 3, "prom')  # a line that was cut off
    result = llmasos.evaluate(model(), task, out=out)
    assert asked == [4, 2]
    monkeypatch.undo()
    straight = llmasos.evaluate(model(), task)
    for a, b in zip(result.records, straight.records, strict=True):
        assert a["prompt"] == b["prompt"] and a["predicted"] == b["predicted"]
        np.testing.assert_allclose(a["logprobs"], b["logprobs"], rtol=SIMPLE)
    again = read_result(file.with_suffix(".json"))
    assert again.metrics == result.metrics and again.records == result.records
    assert again.versions["jax"] and again.seed == 0 and len(again.task_hash) == 64
    assert again.settings["limit"] is None and again.settings["dtype"] == "float32"
    llmasos.evaluate(model(), task, out=out, fresh=True)
    assert len(file.read_text().splitlines()) == 4


def test_another_model_task_seed_or_release_is_another_file(folder, tmp_path, monkeypatch):
    out, task = tmp_path / "results", folder / "write.json"
    llmasos.evaluate(model(), task, out=out, limit=1)
    llmasos.evaluate(model(), task, out=out, limit=1, seed=1)
    keys = {**json.loads(task.read_text()), "max_length": 2, "name": "write"}
    keys["data"] = {"file": str(folder / "rows.jsonl")}
    llmasos.evaluate(model(), keys, out=out, limit=1)
    assert len(list(out.glob("write-small-*.json"))) == 3
    monkeypatch.setattr(run, "versions", lambda: {"llmasos_jax": "0", "jax": "0"})
    llmasos.evaluate(model(), task, out=out, limit=1)
    assert len(list(out.glob("write-small-*.json"))) == 4
    assert fingerprint(model()) == fingerprint(model())
    assert fingerprint(model()) != fingerprint(small_model(SMALL, seed=1))
    assert fingerprint(model()) != fingerprint(small_model(SMALL.replace(norm_eps=1e-3)))


def test_a_prompt_beyond_the_context_is_cut_and_counted(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROWS[0], "q": "long " * 40}) + "\n")
    keys = {**CHOICE, "name": "cut", "data": {"file": str(tmp_path / "rows.jsonl")}}
    result = llmasos.evaluate(model(), keys)
    # 1 + 3 + 200 + 3 ids and at most 4 more, of which the last is not read; the context has 96.
    assert result.records[0]["cut"] == 207 + 4 - 1 - 96
    assert result.num_truncated == 1 and "1 prompts were cut" in str(result)


def test_an_empty_context_begins_with_the_beginning():
    before, found = encode_pairs(model()._require_tokenizer(), "", ["ab"])
    assert (before, found) == ([256], [[97, 98]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "choices"}, 'kind="choices"; did you mean "choice"'),
        ({"promt": "x"}, '"promt" is no key; did you mean "prompt"'),
        ({"prompt": 3}, "prompt=3 is a int, expected str"),
        ({"metrics": ["perplexity"]}, 'metrics has "perplexity", which is none of choice; it has'),
        ({"choices": []}, '"choices" is missing'),
        ({"data": {}}, "give one of file, dataset, builtin"),
        ({"data": {"builtin": "mmlu"}}, 'data.builtin="mmlu" is unknown; did you mean "mmlu_dev"'),
        ({"data": {"file": "none.jsonl"}}, "none.jsonl cannot be read"),
        ({"prompt": "{quest}"}, 'example 0 has no field "quest"'),
        (
            {"answer": "q"},
            """"q" is 'ab'; expected one of ['x', 'yes', 'zz'] or its place, 0 to 2""",
        ),
        ({"continuation": " x"}, "continuation=' x' has no {choice}, so all choices would score"),
        ({"continuation": "{choice}", "choices": ["", "a"]}, "the continuation '' has no token"),
        ({"choices": ["a"]}, "give at least two"),
        ({"choices": [1, 2]}, "choices=[1, 2] is a list, expected"),
        ({"metrics": [["accuracy"]]}, "metrics=[['accuracy']] is a list, expected"),
        ({"prompt": None}, "prompt=None is a NoneType, expected str"),
        ({"max_length": True}, "max_length=True is a bool, expected int"),
        ({3: 1}, '"3" is no key'),
        (
            {"data": {"dataset": "x", "spilt": "train"}},
            'data has no key "spilt"; did you mean "split"',
        ),
        ({"data": {"file": 3}}, "data.file=3 is a int, expected a text"),
        ({"data": {"builtin": ["x"]}}, "data.builtin=['x'] is a list, expected a text"),
    ],
)
def test_a_wrong_task_is_refused_in_one_line(folder, change, said):
    keys = {**CHOICE, "name": "t", "data": {"file": str(folder / "rows.jsonl")}, **change}
    with pytest.raises(EvaluationError) as found:
        llmasos.evaluate(model(), keys)
    assert said in str(found.value) and "\n" not in str(found.value)


def test_files_that_are_no_tasks_or_results_are_refused(tmp_path):
    (tmp_path / "t.toml").write_text("kind = ")
    for source, said in [("aditon", 'did you mean "addition"'), (tmp_path / "t.toml", "t.toml")]:
        with pytest.raises(EvaluationError, match=said):
            load_task(source)
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(EvaluationError, match="is no result of"):
        read_result(tmp_path / "r.json")
    for wrong in ({"limit": 0}, {"limit": True}, {"seed": -1}, {"seed": "x"}):
        with pytest.raises(EvaluationError, match="is not possible; give a whole number"):
            llmasos.evaluate(model(), "addition", **wrong)


def test_a_task_of_keys_needs_a_name_and_a_long_one_is_cut(folder, tmp_path):
    keys = {**CHOICE, "data": {"file": str(folder / "rows.jsonl")}}
    with pytest.raises(EvaluationError, match='"name" is missing'):
        load_task(keys)
    for name in ("n" * 300, "\u4e00" * 300):
        found = run.run_task(model(), load_task({**keys, "name": name}), out=tmp_path / "out")
        assert (tmp_path / "out" / str(found.examples)).is_file() and found.task == name


def test_lines_as_other_programs_write_them(tmp_path):
    """A mark at the beginning, separators inside of a text, and one that is nested too deep."""
    path = tmp_path / "rows.jsonl"
    row = {"text": "one\u2028two\u0085three"}
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    task = {**LOSS, "name": "d", "data": {"file": str(path)}}
    assert load_task(task).examples() == [row]
    path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(EvaluationError, match="line 1 is no JSON"):
        load_task(task).examples()


def test_a_dataset_of_a_folder_is_read_and_one_that_is_not_there_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [json.dumps({"text": row["text"]}, ensure_ascii=False) for row in ROWS]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"dataset": str(folder), "split": "train"}
    rows = load_task({**LOSS, "name": "d", "data": data}).examples()
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    with pytest.raises((DataError, LLMasOSError), match="cannot be read"):
        load_task({**LOSS, "name": "d", "data": {"dataset": str(folder / "no")}}).examples()


def test_the_tasks_of_the_package_are_whole():
    pytest.importorskip("lm_eval")
    sizes = {"addition": 200, "mmlu_dev": 282, "mmlu_dev_text": 282}
    for name in BUILTIN:
        task = load_task(name)
        rows = task.examples()
        assert len(rows) == sizes.get(name, len(rows)) >= 20
        assert task.fingerprint(rows) == load_task(name).fingerprint(task.examples())
        for number, row in enumerate(rows):
            assert task.prompt_of(row, number).strip()
            if task.kind == "choice":
                task.answer_of(row, task.choices_of(row, number), number)
    answers = [row["answer"] for row in load_task("mmlu_dev").examples()]
    assert all(answers.count(letter) > 40 for letter in range(4))


def test_the_command_line_writes_results(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    model().save(tmp_path / "model")
    words = ["eval", str(tmp_path / "model"), f"--task={folder}/choice.json"]
    words += [f"--task={folder}/loss.json", f"--out={tmp_path}/out"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"choice", "loss"} and found["choice"]["num_examples"] == 4
    assert math.isfinite(found["loss"]["metrics"]["perplexity"]["value"])
    assert read_result(Path(found["loss"]["file"])).model_hash == found["choice"]["model_hash"]
    assert cli.main(words) == 0
    assert "accuracy_per_byte  " in capsys.readouterr().out
    for more, said in [
        (words[:2], "--task is missing"),
        ([*words, "x"], "'x' is one argument too many"),
        ([*words[:2], "--task=aditon"], 'did you mean "addition"'),
    ]:
        assert cli.main(more) == 2
        assert said in capsys.readouterr().err


def test_a_model_is_hashed_once(monkeypatch):
    """All its weights are read for it, and each task asks for it."""
    one, other = small_model(SMALL), small_model(SMALL, seed=1)
    wanted, hashed = fingerprint(small_model(SMALL)), []
    real = run._fingerprint
    monkeypatch.setattr(run, "_fingerprint", lambda model: hashed.append(model) or real(model))
    assert [fingerprint(one), fingerprint(one)] == [wanted, wanted] != [fingerprint(other)] * 2
    assert [id(model) for model in hashed] == [id(one), id(other)]


def test_a_scorer_is_made_once():
    assert scorer_of(model()) is scorer_of(model())
