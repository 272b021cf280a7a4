"""`llmasos sweep`, in real processes: run, killed, continued, failed, wrong from the start."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import environment, llmasos
from sweep_folder import losses, table

import llmasos_jax
from llmasos_jax.sweep.executors.local import LocalExecutor

FILE = '''"""Which learning rate?"""

from llmasos_jax.sweep import grid

CONFIG = "tiny"


def sweep(add):
    for point in grid({{"optim.learning_rate": {rates}}}):
        add(point, seeds=2, baseline=point["optim.learning_rate"] == 0.003)
'''
STEPS = "--config.train.steps=40"
OPTIONS = (
    STEPS,
    "--config.data.max_documents=8",
    "--config.train.eval_every_steps=20",
    "--config.checkpoint.every_steps=10",
)


def write(folder, rates=(1e-3, 3e-3)):
    path = folder / "sweep.py"
    path.write_text(FILE.format(rates=list(rates)))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where all commands run, so that they share their caches."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def straight(home):
    """A sweep of four points that nobody disturbed."""
    folder = home / "straight"
    folder.mkdir()
    return folder, llmasos("sweep", write(folder), f"--workdir={folder / 'w'}", *OPTIONS, home=home)


def test_a_sweep_has_runs_results_and_a_report(straight):
    folder, done = straight
    assert "4 points to train in 1 program" in done.stderr
    assert "learning_rate=0.003" in done.stdout
    names = sorted(path.name for path in (folder / "w/points").iterdir())
    assert names == [f"learning_rate={r},seed={s}" for r in ("0.001", "0.003") for s in (0, 1)]
    assert {len(found) for found in losses(folder / "w").values()} == {9}  # 1, 5, 10, .. 40
    rows = table(folder / "w")
    assert [row["setting"] for row in rows] == ["learning_rate=0.003", "learning_rate=0.001"]
    assert rows[0]["summary"]["mean"] < rows[1]["summary"]["mean"]
    assert (folder / "w/report.html").stat().st_size > 5000
    times = [json.loads(p.read_text()) for p in (folder / "w").glob("groups/*/time.json")]
    assert [(t["runs"], t["steps"]) for t in times] == [(4, 39)]


def test_a_point_is_a_run_that_every_verb_reads(straight, home, tmp_path):
    folder, _ = straight
    run = folder / "w/points/learning_rate=0.003,seed=1"
    llmasos("convert", run, tmp_path / "model", home=home)
    assert (tmp_path / "model/model.json").exists()
    assert "40" in llmasos("inspect", run, home=home).stdout


def test_what_is_done_is_not_trained_again_and_points_are_added(straight, home):
    folder, _ = straight
    before = {p: p.stat().st_mtime_ns for p in folder.glob("w/points/*/result.json")}
    path = write(folder, (1e-3, 3e-3, 1e-2))
    done = llmasos("sweep", path, f"--workdir={folder / 'w'}", *OPTIONS, home=home)
    assert "2 points to train in 1 program" in done.stderr
    assert len(table(folder / "w")) == 3
    assert all(p.stat().st_mtime_ns == at for p, at in before.items()) and len(before) == 4
    write(folder)
    again = llmasos("sweep", path, f"--workdir={folder / 'w'}", *OPTIONS, home=home)
    assert "to train" not in again.stderr and len(table(folder / "w")) == 2


def test_other_numbers_under_an_old_name_are_refused(straight, home):
    folder, _ = straight
    words = ("sweep", folder / "sweep.py", f"--workdir={folder / 'w'}", *OPTIONS[1:])
    done = llmasos(*words, STEPS, "--config.optim.beta1=0.8", home=home, status=2)
    assert "beta1" in done.stderr and 'point "learning' in done.stderr
    done = llmasos(*words, "--config.train.steps=50", home=home, status=2)
    assert "has done 40 steps" in done.stderr


def test_killed_and_continued_it_is_the_same(home, tmp_path):
    """SIGKILL of the job, SIGTERM of the sweep, SIGKILL of the sweep; then the same table."""
    undisturbed = tmp_path / "undisturbed"
    llmasos("sweep", write(tmp_path), f"--workdir={undisturbed}", *OPTIONS, home=home)
    path, folder = write(tmp_path), tmp_path / "w"
    words = [sys.executable, "-m", "llmasos", "sweep", path, f"--workdir={folder}", *OPTIONS]
    steps = lambda: [
        json.loads(p.read_text())["step"] for p in folder.glob("groups/*/progress.json")
    ]

    def start():
        with (tmp_path / "said").open("ab") as said:
            return subprocess.Popen(words, env=environment(home), stdout=said, stderr=said)

    def jobs():
        found = subprocess.run(
            ["pgrep", "-f", f"llmasos_jax.sweep.job {folder}"], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def wait_until(is_so):
        end = time.monotonic() + 120
        while not is_so():
            assert time.monotonic() < end
            time.sleep(0.02)

    process = start()
    wait_until(lambda: steps() and steps()[0] >= 2)
    os.kill(jobs()[0], signal.SIGKILL)
    assert process.wait(120) == 3
    assert "failed (ended by SIGKILL)" in (tmp_path / "said").read_text()
    assert {json.loads(p.read_text())["why"] for p in folder.glob("points/*/failed.json")} == {
        "ended by SIGKILL"
    }

    process = start()
    wait_until(jobs)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) in (75, 0)

    process = start()
    wait_until(jobs)
    time.sleep(2)
    process.kill()
    process.wait()
    wait_until(lambda: not jobs())  # a job whose sweep is gone saves and ends

    llmasos(*words[3:], home=home)
    assert losses(folder) == losses(undisturbed)
    assert table(folder) == table(undisturbed)
    assert not list(folder.glob("points/*/failed.json"))


def test_a_bad_sweep_starts_nothing(home, tmp_path):
    path, folder = tmp_path / "sweep.py", tmp_path / "w"
    for body, message in (
        ('add({"optim.lerning_rate": 1.0})', 'point "lerning_rate=1"'),
        ('add({})\n    add({"mesh.tensor": 3})', 'point "tensor=3"'),
        ('add({"mesh.tensor": 2}, seeds=2)', 'point "tensor=2,seed=0" (and 1 more of its shapes)'),
    ):
        path.write_text(f'CONFIG = "tiny"\ndef sweep(add):\n    {body}\n')
        done = llmasos("sweep", path, f"--workdir={folder}", home=home, status=2)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not folder.exists()
    for words, message in (
        ([path], "--workdir"),
        ([path, "--jobs=0", "--workdir=w"], "--jobs=0"),
        ([path, "--memory=0", "--workdir=w"], "--memory"),
        ([path, path, "--workdir=w"], "one argument too many"),
        (["report"], "one folder"),
        (["report", folder], str(folder)),
    ):
        assert message in llmasos("sweep", *words, home=home, status=2).stderr


def test_what_it_costs_is_said_before(home, tmp_path):
    words = ("sweep", write(tmp_path), "--dry-run", STEPS)
    cost = json.loads(llmasos(*words, "--json", home=home).stdout)
    assert (cost["programs"], len(cost["points"])) == (1, 4)
    assert {p["tokens"] for p in cost["points"]} == {40 * 8 * 64}
    flops = cost["points"][0]["flops"]
    assert cost["flops"] == 4 * flops and 6 * 24_000 * 40 * 512 < flops < 6 * 60_000 * 40 * 512
    assert cost["seconds"] > 0 and sorted(p.name for p in tmp_path.iterdir()) == ["sweep.py"]
    said = llmasos(*words, home=home).stdout
    assert "4 points in 1 program," in said and "learning_rate=0.001,seed=1" in said


def test_a_job_that_holds_too_much_fails_alone(home, tmp_path):
    """The one that is too large is killed and says so; the other one is done."""
    path, folder = tmp_path / "sweep.py", tmp_path / "w"
    path.write_text(
        'CONFIG = "tiny"\ndef sweep(add):\n    add({"train.steps": 4})\n'
        '    add({"train.batch_size": 4096, "train.steps": 4}, name="large")\n'
    )
    words = ("sweep", path, f"--workdir={folder}", "--memory=1.2", "--jobs=2")
    done = llmasos(*words, home=home, status=3)
    assert "large: failed (killed: it held" in done.stderr
    why = json.loads((folder / "points/large/failed.json").read_text())
    assert "GiB" in why["why"] and (folder / why["log"]).exists()
    assert (folder / "points/steps=4/result.json").exists()


def test_the_python_function(tmp_path):
    report = llmasos_jax.sweep(
        write(tmp_path, (1e-2,)),
        tmp_path / "w",
        overrides={"train.steps": 4, "data.max_documents": 8},
        executor=LocalExecutor(jobs=2),
        together=1,
    )
    assert report.num_failed == 0 and "learning_rate=0.01" in str(report)
    assert len(list((tmp_path / "w").glob("groups/*"))) == 2
