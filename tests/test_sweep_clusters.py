"""A sweep on a real Slurm of one node, and on a real Ray: the same table as in processes here."""

import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm
from commands import environment, llmasos
from sweep_folder import losses, table

from llmasos_jax.cli.main import main
from llmasos_jax.errors import ConfigError
from llmasos_jax.sweep.executors.slurm import SlurmExecutor

FILE = '''"""Which rate, and which MLP?"""

from llmasos_jax.sweep import grid

CONFIG = "tiny"


def sweep(add):
    for point in grid({"optim.learning_rate": [1e-3, 3e-3], "model.mlp": ["swiglu", "relu"]}):
        add(point, seeds=2, baseline=point == {"optim.learning_rate": 1e-3, "model.mlp": "relu"})
'''
OPTIONS = (
    "--config.train.steps=600",
    "--config.data.max_documents=8",
    "--config.train.eval_every_steps=300",
    "--config.checkpoint.every_steps=50",
)
CLUSTERS = ("slurm", "ray")


def skip_without(package):
    # Not by importing it: submitit's import is itself under test.
    if importlib.util.find_spec(package) is None:
        pytest.skip("needs the extra `sweep`")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / "sweep.py").write_text(FILE)
    return folder


@pytest.fixture(scope="module")
def here(home):
    """In processes of this machine, undisturbed."""
    llmasos("sweep", home / "sweep.py", f"--workdir={home / 'here'}", *OPTIONS, home=home)
    return home / "here"


@pytest.fixture(scope="module")
def slurm_variables(tmp_path_factory):
    skip_without("submitit")
    if (why := slurm.lacking()) is not None:
        pytest.skip(why)
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


class Sweep:
    """`llmasos sweep` of the file, on a cluster, as a process."""

    def __init__(self, home, folder, *words, variables=None):
        self.folder = folder
        words = ["sweep", home / "sweep.py", f"--workdir={folder}", *words, *OPTIONS]
        self.log = folder.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llmasos", *map(str, words)],
                env=environment(home) | (variables or {}),
                stdout=log,
                stderr=log,
            )

    def said(self):
        return self.log.read_text()

    def status(self):
        return self.process.wait(200)

    def wait_until_begun(self):
        """Until a job has a checkpoint, and trains on."""
        end = time.monotonic() + 150
        while not any(self.folder.glob("groups/*/checkpoints/*")):
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(0.02)


def assert_same(folder, here):
    assert table(folder) == table(here)
    assert losses(folder) == losses(here)
    assert len(losses(here)) == 8


def numbers(folder):
    """Of Slurm's jobs, those that were ever started for each group."""
    logs = folder.glob("groups/*/slurm/*_submitted.pkl")
    return sorted(re.match(r"\d+", path.name)[0] for path in logs)


TIME = "--executor-option=time=10"


def test_slurm_gives_the_same_table(home, here, slurm_variables, tmp_path):
    sweep = Sweep(home, tmp_path / "w", "--executor=slurm", TIME, variables=slurm_variables)
    assert sweep.status() == 0, sweep.said()
    assert_same(tmp_path / "w", here)
    assert len(numbers(tmp_path / "w")) == 2


@pytest.mark.parametrize("taken", [["scancel", "--signal=USR2"], ["scontrol", "requeue"]])
def test_slurm_jobs_outlive_the_sweep_and_go_on_after_preemption(
    taken, home, here, slurm_variables, tmp_path
):
    """SIGKILL of the sweep, then Slurm takes the machine back; nothing starts twice."""
    words = ("--executor=slurm", TIME, "--jobs=1")
    sweep = Sweep(home, tmp_path / "w", *words, variables=slurm_variables)
    sweep.wait_until_begun()
    sweep.process.kill()
    sweep.process.wait()
    (first,) = numbers(tmp_path / "w")
    other = Sweep(home, tmp_path / "w", "--executor=local", variables=slurm_variables)
    assert other.status() == 2
    assert f"Slurm's job {first} of an earlier call still has points" in other.said()
    if taken[0] == "scontrol":  # killed before it could note the job's number
        (note,) = (tmp_path / "w").glob("groups/*/slurm.json")
        note.unlink()
    again = Sweep(home, tmp_path / "w", *words, variables=slurm_variables)
    slurm.run(*taken, first, variables=slurm_variables)
    slurm.run_again_now(first, slurm_variables)
    assert again.status() == 0, again.said()
    assert_same(tmp_path / "w", here)
    assert len(numbers(tmp_path / "w")) == 2 and first in numbers(tmp_path / "w"), again.said()
    (log,) = (tmp_path / "w").glob(f"groups/*/slurm/{first}_0_log.out")
    assert log.read_text().count("Starting with JobEnvironment") == 2


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_asked_to_stop_jobs_save_and_the_same_command_goes_on(
    cluster, home, here, request, tmp_path
):
    variables = request.getfixturevalue("slurm_variables") if cluster == "slurm" else None
    if cluster == "ray":
        skip_without("ray")
    words = [f"--executor={cluster}", *([TIME] if cluster == "slurm" else [])]
    sweep = Sweep(home, tmp_path / "w", *words, variables=variables)
    sweep.wait_until_begun()
    sweep.process.send_signal(signal.SIGTERM)
    assert sweep.status() == 75, sweep.said()
    assert not any((tmp_path / "w").glob("points/*/failed.json")), sweep.said()
    assert len(losses(tmp_path / "w")) < 8 or losses(tmp_path / "w") != losses(here)
    again = Sweep(home, tmp_path / "w", *words, variables=variables)
    assert again.status() == 0, again.said()
    assert_same(tmp_path / "w", here)


def test_a_cancelled_job_fails_alone_and_says_so(home, here, slurm_variables, tmp_path):
    words = ("--executor=slurm", TIME, "--jobs=1")
    sweep = Sweep(home, tmp_path / "w", *words, variables=slurm_variables)
    sweep.wait_until_begun()
    (first,) = numbers(tmp_path / "w")
    slurm.run("scancel", first, variables=slurm_variables)
    assert sweep.status() == 3, sweep.said()
    failed = [json.loads(p.read_text()) for p in (tmp_path / "w").glob("points/*/failed.json")]
    assert len(failed) == 4 and {len(f["why"]) < 200 for f in failed} == {True}
    assert failed[0]["why"].startswith(f"Slurm's job {first} is CANCELLED; what it said is in")
    assert (tmp_path / "w" / failed[0]["log"]).exists()
    done = losses(tmp_path / "w")
    assert [done[name] == found for name, found in losses(here).items()].count(True) == 4


def test_a_dead_process_on_ray_fails_alone(home, here, tmp_path):
    skip_without("ray")
    sweep = Sweep(home, tmp_path / "w", "--executor=ray")
    sweep.wait_until_begun()
    pattern = f"llmasos_jax.sweep.job {tmp_path / 'w'}"
    (job, *_) = subprocess.run(
        ["pgrep", "-f", pattern], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(job), signal.SIGKILL)
    assert sweep.status() == 3, sweep.said()
    failed = [json.loads(p.read_text()) for p in (tmp_path / "w").glob("points/*/failed.json")]
    assert [f["why"] for f in failed] == ["ended by SIGKILL"] * 4
    again = Sweep(home, tmp_path / "w", "--executor=ray")
    assert again.status() == 0, again.said()
    assert_same(tmp_path / "w", here)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["slurm", "partition=main"], "needs the time of each job"),
        (
            ["slurm", "time=4:00:00", "partitoin=x"],
            'no option partitoin; did you mean "partition"?',
        ),
        (["slurm", "time=soon"], "time=soon"),
        (["slurm", "time=60", "cpus_per_task=two"], "cpus_per_task=two is not a whole number"),
        (["slurm", "time=60", "time=70"], "time=70 is given twice"),
        (["ray", "num_gpu=1"], 'no option num_gpu; did you mean "num_gpus"?'),
        (["ray", "num_gpus"], "num_gpus is not NAME=VALUE"),
        (["ray", "address=127.0.0.1:1"], "found no cluster"),
        (["local", "time=60"], "--executor-option is for --executor=slurm and ray"),
    ],
)
def test_wrong_options_are_one_line_and_start_nothing(words, said, home, tmp_path, capsys):
    skip_without({"ray": "ray"}.get(words[0], "submitit"))
    flags = [f"--executor={words[0]}", *(f"--executor-option={word}" for word in words[1:])]
    folder = f"--workdir={tmp_path / 'w'}"
    assert main(["sweep", str(home / "sweep.py"), folder, *flags, *OPTIONS]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("llmasos: error: ") and said in line
    assert not Path(tmp_path / "w").exists()


def test_submitit_closes_no_handler_of_others(tmp_path):
    skip_without("submitit")
    with (tmp_path / "log").open("w") as file:
        handler = logging.StreamHandler(file)
        handler.close = file.close  # as absl's does
        with pytest.raises(ConfigError, match="needs the time"):
            SlurmExecutor({})
        assert not file.closed
