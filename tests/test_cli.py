"""The command line: help, exit statuses, and one clear line for what is wrong."""

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import time

import pytest

from llmasos_jax import errors
from llmasos_jax.cli import generate
from llmasos_jax.cli import main as cli
from llmasos_jax.generate.model import Model


def command(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "llmasos", *words], capture_output=True, text=True, **options
    )


def test_help_answers_in_half_a_second():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = command("--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert statistics.median(seconds) < 0.5, seconds
    for verb in cli.VERBS:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: llmasos {verb}") and "--debug" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian --config=tiny", 'there is no verb "trian"; did you mean "train"?'),
        ("--versoin", 'there is no option --versoin; did you mean "--version"?'),
        ("train --workdr=x", 'there is no option --workdr; did you mean "--workdir"?'),
        ("train --config=tiny", "the following arguments are required: --workdir"),
        ("train --config=tiny --workdir=x y", "'y' is one argument too many"),
        ("train --config=tinny --workdir=x", 'did you mean "tiny"?'),
        ("train --config=tiny --workdir=x --config.train.step=3", 'did you mean "train.steps"?'),
        ("train --config=tiny --workdir=x --config.train.steps=0", "train.steps=0 must be above 0"),
        ("train --config=tiny --workdir=x --config.train.steps", "has no value"),
        ("generate m p --max_length=3", 'did you mean "--max-length"?'),
        ("generate m p --max-length=x", "invalid int value: 'x'"),
        ("generate m p --config.train.steps=3", "takes no --config"),
        ("--debug", "no verb"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("llmasos: error: ") and said in last
    assert captured.out == ""
    if "--debug" not in words:
        assert len(captured.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "a refused command must leave nothing behind"


def test_debug_shows_the_traceback(capsys):
    assert cli.main(["train", "--config=tinny", "--workdir=x", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.DataError("no data"), 2),
        (errors.TrainingFailedError("loss is nan"), 3),
        (errors.PreemptedError("saved"), 75),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file or directory", "x"), 2),
        (ZeroDivisionError("bug"), 3),
    ],
)
def test_exit_status_follows_the_error(error, status, capsys, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["train"]) == status
    assert capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    "error", [MemoryError("96 GB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory, 96 GB")]
)
def test_memory_that_is_short_is_one_line(error, capsys, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["train"]) == cli.RUN_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert "96 GB; take a smaller model, batch or sequence" in line


def test_generate_has_the_defaults_of_generate_text():
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    args = vars(parser.parse_args(["model", "prompt"]))
    wanted = inspect.signature(Model.generate_text).parameters
    assert len(args.keys() & wanted.keys()) == 15
    for name in args.keys() & wanted.keys():
        assert args[name] == wanted[name].default, name


def test_overrides_come_with_equals_or_as_the_next_word():
    rest, overrides = cli.split_overrides(
        ["a", "--config.x.y=1=2", "--config.z", "3", "--", "--config.no=1"]
    )
    assert rest == ["a", "--", "--config.no=1"]
    assert overrides == {"x.y": "1=2", "z": "3"}


def test_a_closed_pipe_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "llmasos", "--version"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.PIPE_CLOSED, "")


def test_data_show_says_what_a_run_reads(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["data", "show", "--config=tiny", "--config.data.max_documents=5", "--json"]
    assert cli.main([*words, "--rows=1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["train_documents"] + shown["heldout_documents"] == 5
    assert shown["vocab_size"] == 259 and shown["tokens_per_step"] == 8 * 64
    assert shown["epochs"] == 20 * 512 / shown["train_tokens"]
    (row,) = shown["rows"]
    assert 0 < row["tokens"] <= 64 and row["text"]
    assert cli.main([*words[:-1], "--rows=2"]) == 0
    out = capsys.readouterr().out
    assert "row 1: " in out and "\n  | " in out


def test_inspect_says_what_it_cannot_read(capsys, tmp_path):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "holds no model: expected a model.json" in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path / "absent")]) == 2
    assert "is not there; give a model.json" in capsys.readouterr().err


def test_inspect_counts_a_model_without_weights(capsys, tmp_path):
    path = tmp_path / "model.json"
    smallest = {"vocab_size": 256, "embedding_dim": 64, "num_layers": 2}
    found = {"name": "m", "version": "1.0", "architecture": "Transformer", "parameters": smallest}
    path.write_text(json.dumps(found))
    assert cli.main(["inspect", str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["parameters"] == 123200 and answer["tensors"] is None


def test_data_show_refuses_a_negative_number_of_rows(capsys):
    assert cli.main(["data", "show", "--config=tiny", "--rows=-1"]) == 2
    assert "--rows=-1 must be at least 0" in capsys.readouterr().err
