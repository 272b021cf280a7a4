"""What a sweep makes of Slurm's answers, given by programs of its clients' names."""

import importlib.util
import os

import pytest

from llmasos_jax.errors import ConfigError
from llmasos_jax.sweep.executors.slurm import SlurmExecutor, check_left, open_job
from llmasos_jax.sweep.places import Places, read_json, write_json

CLIENTS = ("squeue", "scontrol", "sacct", "sinfo", "sbatch", "srun", "scancel")


class Slurm:
    """Clients that say what a test wants, and note how they were called."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in CLIENTS:
            self.says(name, "")

    def says(self, name, text, status=0):
        """Lets a client print a text; it goes to standard error with a status that is not 0."""
        to = " >&2" if status else ""
        lines = ("#!/bin/sh", f"echo {name} >> {self.folder}/calls", f"printf '%s' '{text}'{to}")
        (self.folder / name).write_text("\n".join((*lines, f"exit {status}\n")))
        (self.folder / name).chmod(0o755)

    def calls(self):
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    made = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def places(tmp_path):
    """A sweep with one group, whose job was submitted."""
    made = Places(tmp_path / "w")
    (made.group("g") / "slurm").mkdir(parents=True)
    return made


def needs_submitit():
    # Not by importing it, which would set up its logging.
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("needs the extra `sweep`")


def note(places, number):
    write_json(places.group("g") / "slurm.json", {"id": number})


def result(places, number):
    (places.group("g") / "slurm" / f"{number}_0_result.pkl").touch()


def test_slurm_is_not_asked_about_groups_that_never_had_a_job(slurm, tmp_path):
    """A sweep of this machine alone goes on where Slurm is slow, or does not answer."""
    places = Places(tmp_path / "w")
    places.group("g").mkdir(parents=True)
    check_left(places, ())
    assert slurm.calls() == []


@pytest.mark.parametrize("noted", [None, "3"])
def test_a_job_that_no_note_has_is_found_by_its_name(slurm, places, noted):
    """The sweep was killed after sbatch took job 7; job 3, before it, has saved and ended."""
    if noted is not None:
        note(places, noted)
        result(places, noted)
    slurm.says("squeue", "7\n")
    assert open_job(places, "g") == "7"
    with pytest.raises(ConfigError, match="Slurm's job 7 of an earlier call .*scancel 7"):
        check_left(places, ("other",))
    check_left(places, ("g",))


def test_a_job_is_over_once_its_result_is_there(slurm, places):
    note(places, "7")
    result(places, "7")
    slurm.says("squeue", "7\n")
    slurm.says("scontrol", "JobId=7 JobState=COMPLETING Reason=None")
    assert open_job(places, "g") is None


def test_a_job_that_slurm_says_nothing_of_may_still_run(slurm, places):
    note(places, "7")
    for name in ("squeue", "scontrol", "sacct", "sinfo"):
        slurm.says(name, "unable to contact slurm controller", status=1)
    with pytest.raises(ConfigError, match=r"its job 7 may still .*remove .*groups/g/slurm\.json$"):
        open_job(places, "g")
    slurm.says("sinfo", "main* up infinite 1 idle here\n")
    assert open_job(places, "g") is None


@pytest.mark.parametrize("is_told", [True, False])
def test_a_job_is_taken_up_unless_it_was_never_told_what_to_do(slurm, places, is_told):
    """Submitit writes the job's function in its place once sbatch has given the number."""
    needs_submitit()
    slurm.says("squeue", "7\n")
    slurm.says("sbatch", "Submitted batch job 8\n")
    if is_told:
        (places.group("g") / "slurm/7_submitted.pkl").touch()
    SlurmExecutor({"time": "10"}).start(places, "g")
    assert read_json(places.group("g") / "slurm.json") == {"id": "7" if is_told else "8"}
    did = [name for name in slurm.calls() if name in ("scancel", "sbatch")]
    assert did == ([] if is_told else ["scancel", "sbatch"])
    assert is_told or (places.group("g") / "slurm/8_submitted.pkl").exists()


def test_what_sbatch_refuses_is_one_line(slurm, places, capfd):
    needs_submitit()
    slurm.says("sbatch", "sbatch: error: invalid partition\nsbatch: error: failed", status=1)
    executor = SlurmExecutor({"time": "10", "partition": "x"})
    with pytest.raises(ConfigError) as error:
        executor.start(places, "g")
    assert str(error.value) == (
        "sbatch did not take the job: sbatch: error: invalid partition sbatch: error: failed"
    )
    assert capfd.readouterr().err == ""
    assert not (places.group("g") / "slurm.json").exists()
