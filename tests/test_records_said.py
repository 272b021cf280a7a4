"""Wrong data through the command line: one line with file, line and remedy, and counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_model import small_model
from tuning_processes import BASE

from llmasos_jax.cli.main import main

CONFIG = """
from llmasos_jax.config.build import default_config


def get_config(variant=""):
    c = default_config()
    c.finetune.base = "{folder}/base"
    c.objective.name = variant
    c.data.source, c.data.path = "jsonl", "{folder}/a.jsonl"
    c.data.sequence_length = 64
    c.train.steps, c.train.batch_size = 1, 8
    c.train.eval_every_steps = None
    if variant == "classify":
        c.model.classifier.labels = ("ham", "spam")
        c.model.pooling = "mean"
    return c
"""
ANSWERS = [{"prompt": f"{i}? ", "completion": "yes"} for i in range(2)]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
TALKS = [{"messages": [*TURNS, {"role": "user", "content": str(i)}, TURNS[1]]} for i in range(2)]
PAIRS = [{"prompt": f"{i}? ", "chosen": "yes", "rejected": "no"} for i in range(2)]
LABELLED = [{"text": f"text {i}", "label": "ham"} for i in range(2)]
REST = "raise it (the model reads up to 128), shorten the record, or set"
CASES: dict[str, tuple[str, list[Any], Any, str]] = {
    "missing field": (
        *("sft", ANSWERS, {"prompt": "Hi"}),
        'it has "prompt" and no "completion"; expected {"prompt", "completion"}: add it',
    ),
    "empty conversation": (
        *("sft", TALKS, {"messages": []}),
        "messages is an empty conversation; expected messages that end with the assistant's: take "
        "the record out",
    ),
    "two roles in a row": (
        *("sft", TALKS, {"messages": [TURNS[0], TURNS[0], TURNS[1]]}),
        "messages[1] is the user's, as the one before it; roles take turns: join the two, or put "
        "in what is missing",
    ),
    "half a surrogate pair": (
        *("sft", ANSWERS, {"prompt": "a\ud800", "completion": "b"}),
        "prompt holds half of a surrogate pair at character 1; take it out",
    ),
    "answer too long": (
        *("sft", ANSWERS, {"prompt": "a", "completion": "b" * 200}),
        f"203 tokens, more than data.sequence_length=64; {REST} "
        'finetune.too_long="drop" or "truncate"',
    ),
    "no rejected answer": (
        *("dpo", PAIRS, {"prompt": "Hi", "chosen": "yes"}),
        'it has "chosen", "prompt" and no "rejected"; expected {"prompt", "chosen", "rejected"}: '
        "add it",
    ),
    "pair too long": (
        *("dpo", PAIRS, {"prompt": "a" * 40, "chosen": "yes", "rejected": "no"}),
        "its answers have 45 and 44 tokens with their prompt, more than data.sequence_length=64; "
        f'{REST} finetune.too_long="drop" or "truncate"',
    ),
    "no label": (
        *("classify", LABELLED, {"text": "a", "lable": 1}),
        'no field "label" (there are: lable, text); objective.name="classify" reads text, label, '
        'text_pair: did you mean "lable"?',
    ),
    "label out of range": (
        *("classify", LABELLED, {"text": "a", "label": 2}),
        "label 2 is out of range; expected 0 to 1, an index of model.classifier.labels (ham, "
        "spam), or a name of them",
    ),
    "text too long": (
        *("classify", LABELLED, {"text": "a" * 300, "label": 1}),
        "301 tokens, and data.sequence_length=64; raise it (model.context_length=128 is the most), "
        'or set finetune.too_long="truncate" to cut the end of texts, "drop" to leave such records '
        "out",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("said")
    small_model(BASE).save(path / "base")
    (path / "tune.py").write_text(CONFIG.format(folder=path))
    return path


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def write(folder: Path, rows: list[Any]) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_line_is_named_by_both_commands(folder: Path, capsys: Any, case: str) -> None:
    objective, right, wrong, said = CASES[case]
    write(folder, [*right, wrong])
    config, workdir = f"--config={folder}/tune.py:{objective}", folder / "run"
    for words in (["finetune", config, f"--workdir={workdir}"], ["data", "show", config]):
        capsys.readouterr()
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err == f"llmasos: error: {folder}/a.jsonl:3: {said}\n"
    assert not workdir.exists()


def test_what_was_dropped_is_counted(folder: Path, capsys: Any) -> None:
    rows = [{"prompt": f"{i}? ", "completion": "word " * 9} for i in range(20)]
    write(folder, [*rows, *({"prompt": f"{i} ", "completion": "word " * 50} for i in range(2))])
    config = f"--config={folder}/tune.py:sft"
    more = ["--config.finetune.too_long=drop"]
    assert main(["data", "show", config, *more, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["counts"] == {"dropped, too long": 2}
    assert shown["train_documents"] + shown["heldout_documents"] == 20
