"""The main job from end to end, as a user does it: train, go on, convert, inspect, generate."""

import json
import re
import signal
import subprocess
import sys

import pytest
from commands import environment, llmasos, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home):
    done = llmasos("train", "--config=tiny", "--workdir=run", "--json", home=home)
    return done, home / "run"


@pytest.fixture(scope="module")
def model(home, trained):
    llmasos("convert", "run", "model", home=home)
    return home / "model"


def compiled(stderr):
    """(compiled, found in the cache) as the command says."""
    found = re.search(r"compiled (\d+) programs, (\d+) from the cache", stderr)
    assert found, stderr
    return int(found[1]), int(found[2])


def test_training_leaves_a_whole_folder(trained):
    done, folder = trained
    result = json.loads(done.stdout)
    assert result["step"] == 20 and result["loss"] < 5.0
    assert result["heldout_perplexity"] > 1.0
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in steps if "loss" in row]
    assert losses[-1] < losses[0] - 0.3, "20 steps lower the loss by more than noise"
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 20
    assert (
        sorted(p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit())[-1] == "20"
    )
    assert list((folder / "tensorboard").iterdir())


def test_a_second_run_compiles_nothing(home, trained):
    assert compiled(trained[0].stderr)[0] > 0
    again = llmasos("train", "--config=tiny", "--workdir=again", "--json", home=home)
    fresh, found = compiled(again.stderr)
    assert fresh == 0 and found > 0
    assert json.loads(again.stdout)["loss"] == json.loads(trained[0].stdout)["loss"]


def test_the_same_command_goes_on(home, trained):
    more = ("--workdir=longer", "--json", "--config=tiny")
    llmasos("train", *more, "--config.train.steps=10", home=home)
    done = llmasos("train", *more, "--config.train.steps=12", home=home)
    assert json.loads(done.stdout)["step"] == 12
    refused = llmasos(
        "train",
        *more,
        "--config.optim.learning_rate=0.5",
        "--config.data.seed=3",
        home=home,
        status=2,
    )
    assert "optim.learning_rate: 0.01 -> 0.5" in refused.stderr
    assert "data.seed: 0 -> 3" in refused.stderr


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_goes_on(home, trained, sent):
    words = ("train", "--config=tiny", f"--workdir=stopped{sent}", "--config.train.steps=300")
    with subprocess.Popen(
        [sys.executable, "-m", "llmasos", *words],
        cwd=home,
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith("step 15/"):
                process.send_signal(sent)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 75, rest
    assert "Traceback" not in rest
    stopped_at = max(int(p.name) for p in (home / f"stopped{sent}" / "checkpoints").iterdir())
    assert 15 <= stopped_at < 300
    done = llmasos(*words, "--json", home=home)
    assert json.loads(done.stdout)["step"] == 300
    assert f"from step {stopped_at} of 300" in done.stderr


def test_inspect_sees_the_run_and_the_model(home, trained, model):
    folder = json.loads(llmasos("inspect", "run", "--json", home=home).stdout)
    made = json.loads(llmasos("inspect", "model", "--json", home=home).stdout)
    assert (folder["kind"], folder["step"], made["kind"]) == ("checkpoint", 20, "model")
    assert folder["parameters"] == made["parameters"] > 10_000
    assert made["tensors"]["embed.table"] == "float32[259,32]"


def test_generate_writes_the_same_text_for_the_same_seed(home, model):
    words = ("generate", "model", "def ", "--max-length=12", "--seed=3")
    first = llmasos(*words, home=home).stdout
    again = llmasos(*words, "--debug", home=home)
    assert again.stdout == first
    assert compiled(again.stderr)[0] == 0, "a second process finds its programs in the cache"
    assert llmasos(*words, "--echo", home=home).stdout == "def " + first
    together = llmasos(*words, "import ", "--json", home=home).stdout
    assert len(json.loads(together)["texts"]) == 2


def test_generate_refuses_what_makes_no_sense(home, model):
    assert "top_p" in llmasos("generate", "model", "a", "--top-p=2", home=home, status=2).stderr
    lost = llmasos("generate", "nowhere", "a", home=home, status=2).stderr
    assert "nowhere" in lost and len(lost.strip().splitlines()) == 1


def test_the_python_api_does_the_same(home, model):
    code = f"""
import llmasos
from llmasos import LLMasOS
model = LLMasOS.load_model({str(model / "model.json")!r})
text = model.generate_text("def ", max_length=12, temperature=1.0, seed=3)
assert text == llmasos.generate_text(model, "def ", max_length=12, seed=3)
result = llmasos.train("tiny", {str(home / "run")!r})
assert "<table" in result._repr_html_()
print(text)
"""
    done = run("-c", code, home=home)
    words = ("generate", "model", "def ", "--max-length=12", "--seed=3")
    assert done.stdout == llmasos(*words, home=home).stdout
