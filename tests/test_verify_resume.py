"""`llmasos verify-resume`: real runs, really killed; and runs that are not the same are found."""

import json

import pytest
from commands import llmasos

from llmasos_jax.cli.main import main
from llmasos_jax.errors import ConfigError
from llmasos_jax.verify.run import Stage, _apart, _different_batches, stages_of

QUICK = ("--config=tiny", "--config.data.max_documents=8", "--steps=12")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def found(*words, home, status=0):
    done = llmasos("verify-resume", *QUICK, *words, "--json", home=home, status=status)
    return json.loads(done.stdout)


def test_killed_in_a_step_and_while_saving_it_is_the_same_run(home, tmp_path):
    answer = found("--kill-at=5", f"--workdir={tmp_path / 'kept'}", home=home)
    assert answer["is_same"] and [run["moment"] for run in answer["runs"]] == [
        "in a step",
        "while saving",
    ]
    in_a_step, while_saving = answer["runs"]
    # Saved every two steps: the one killed while saving had not written step 6.
    assert in_a_step["killed_at"] == [5] and in_a_step["went_on_from"][0] in (2, 4)
    assert while_saving["killed_at"][0] >= 6 and while_saving["went_on_from"] == [4]
    for run in answer["runs"]:
        assert run["steps"] == 12 and run["leaves"] > 30 and run["largest_difference"] == 0.0
        assert run["batches"] == run["restored"] == run["losses"] == run["final"] == []
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {"straight", "in-a-step", "while-saving"}


def test_it_goes_on_with_other_processes_on_another_mesh(home):
    words = ("--kill-at=3,7", "--hosts=1,2,1", "--mesh=4x1x1,4x1x1,1x2x2")
    answer = found(*words, "--config.model.vocab_size=264", home=home)
    assert answer["where"] == "1 process on 4x1x1 -> 2 processes on 4x1x1 -> 1 process on 1x2x2"
    for run in answer["runs"]:
        assert run["is_same"] and run["final"] is None
        assert len(run["killed_at"]) == len(run["went_on_from"]) == 2
        assert 0.0 < run["largest_difference"] <= 1e-5


def test_a_run_that_cannot_be_repeated_is_found(home):
    """Its batches depend on the process that makes them."""
    (home / "own.py").write_text(
        "import dataclasses, os\n"
        "from llmasos_jax.data import objectives\n"
        "from llmasos_jax.train.objective import causal\n"
        "def objective(cfg, vocabulary):\n"
        "    def prepare(row, rng):\n"
        "        batch = objectives.causal(row, rng)\n"
        "        weights = batch.loss_weights * (1 + os.getpid() % 97 / 97)\n"
        "        return dataclasses.replace(batch, loss_weights=weights)\n"
        "    return dataclasses.replace(causal(cfg, vocabulary), prepare=prepare)\n"
    )
    words = ("--kill-at=5", "--config.objective.name=own:objective")
    answer = found(*words, home=home, status=1)
    assert not answer["is_same"] and answer["folder"] is not None
    for run in answer["runs"]:
        assert run["batches"] == list(range(1, 13))
        assert run["losses"] and "params/embed/table" in run["final"]


def test_what_was_read_and_lost_is_told_apart():
    wanted = {1: {"0": "a", "1": "b"}, 2: {"0": "c", "1": "d"}}
    whole, torn = {1: {"0": "a", "1": "b"}}, {2: {"0": "c"}}
    assert _different_batches([whole, torn], wanted) == [2]  # never read whole
    assert _different_batches([whole, torn, {2: wanted[2]}], wanted) == []
    assert _different_batches([{1: {"0": "x", "1": "b"}}, whole, wanted], wanted) == [1]
    assert _apart(1.0, 1.0) == _apart(None, None) == 0.0
    assert _apart(None, 1.0) == float("inf") and _apart(1.1, 1.0) == pytest.approx(0.1)


def test_stages():
    assert stages_of([], [], 1) == [Stage(), Stage()]
    assert stages_of([1, 2, 1], ["2x1x1"], 2)[1] == Stage(2, (2, 1, 1))
    for hosts, meshes, kills, said in (
        ([1, 2], [], 2, "--hosts has 2 values, and 2 kills part a run into 3; give 3, or one"),
        ([], ["8x1", "2x2x2"], 1, "--mesh=8x1 is not DATAxFSDPxTENSOR"),
        ([], ["8x1x1", "2x2x1"], 1, "give meshes of as many devices each"),
        ([0], [], 1, "at least 1 process each"),
    ):
        with pytest.raises(ConfigError, match=said):
            stages_of(hosts, meshes, kills)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kill-at=12"], "--kill-at=12 with --steps=12: give steps from 1 to 11"),
        (["--kill-at=7,3"], "each later than the one before"),
        (["--kill-at=soon"], "--kill-at=soon has to be whole numbers"),
        (["--hosts=3", "--mesh=8x1x1"], "8 devices of --mesh cannot be shared out among --hosts"),
        (["--config.train.batch_size=3", "--mesh=2x1x1"], "train.batch_size=3 is not divisible"),
    ],
)
def test_wrong_input_is_one_line(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["verify-resume", *QUICK, *words]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("llmasos: error: ") and said in line
