"""What starts a sweep's points on a cluster: whole files, each run in the sweep's folder."""

import json
import subprocess
from pathlib import Path

import pytest

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import load_config
from llmasos_jax.errors import ConfigError
from llmasos_jax.sweep.places import Places
from llmasos_jax.sweep.report.write import write_report

SLURM = {"workdir": "/shared/rates", "partition": "gpu", "nodes": 4, "time": "24:00:00"}
GKE = {"topology": "v5e:2x4", "workdir": "/data/rates", "image": "i", "bucket": "b"}
TEXT = '''"""Which rate?"""
from llmasos_jax.sweep import grid
CONFIG = "tiny"


def sweep(add):
    for point in grid({"optim.learning_rate": [1e-3, 1e-2]}):
        add(point, seeds=2, baseline=point["optim.learning_rate"] == 1e-3)
    add({"model.mlp": "relu"}, name="it's relu")
'''
NAMES = [
    "learning_rate=0.001,seed=0",
    "learning_rate=0.001,seed=1",
    "learning_rate=0.01,seed=0",
    "learning_rate=0.01,seed=1",
    "it-s-relu",
]


@pytest.fixture
def sweep_file(tmp_path):
    folder = tmp_path / "my rates"
    folder.mkdir()
    (folder / "sweep.py").write_text(TEXT)
    return folder / "sweep.py"


def test_each_point_is_a_run_in_the_sweeps_folder(sweep_file, tmp_path):
    made = llmasos_jax.launch_sweep(
        sweep_file, "slurm", tmp_path / "out", overrides={"train.steps": 7}, **SLURM
    )
    assert (made.points, made.hosts, made.chips) == (5, 4, None)
    scripts = [(tmp_path / "out" / name / "train.sbatch").read_text() for name in NAMES]
    for name, script in zip(NAMES, scripts, strict=True):
        assert f"--workdir={Places(Path(SLURM['workdir'])).point(name)}" in script.replace("'", "")
        config = load_config(tmp_path / "out" / name / "config.json")
        assert config.train.steps == 7
        assert config.optim.learning_rate == (1e-3 if "0.001" in name else 1e-2)
    jobs = [line for s in scripts for line in s.splitlines() if "--job-name=" in line]
    assert len(set(jobs)) == 5
    assert all(line.startswith("#SBATCH --job-name=my-rates-") for line in jobs)


def test_one_script_starts_them_all(sweep_file, tmp_path):
    """Run by bash, with a program of that name in the place of sbatch."""
    made = llmasos_jax.launch_sweep(sweep_file, "slurm", tmp_path / "o ut", **SLURM)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/started\n')
    (tmp_path / "bin/sbatch").chmod(0o755)
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    subprocess.run(["bash", "-c", made.start], check=True, env={"PATH": path})
    started = (tmp_path / "started").read_text().splitlines()
    assert started == [f"{tmp_path}/o ut/{name}/train.sbatch" for name in NAMES]


def test_the_report_reads_what_it_wrote(sweep_file, tmp_path):
    llmasos_jax.launch_sweep(sweep_file, "gke", tmp_path, overrides={"mesh.data": 8}, **GKE)
    report = write_report(Places(tmp_path))
    names = [p["name"] for p in json.loads((tmp_path / "sweep.json").read_text())["points"]]
    assert names == NAMES
    assert report.num_failed == 0 and "Which rate?" in str(report)
    for name in NAMES:
        assert f"workdir=/data/rates/points/{name}" in (tmp_path / name / "jobset.yaml").read_text()


@pytest.mark.parametrize(
    ("on", "lacking", "overrides", "message"),
    [
        (
            "gke",
            [],
            {"train.batch_size": 4},
            r'point "learning_rate=0.001,seed=0": train.batch_size=4 is not divisible',
        ),
        ("gke", ["image"], {}, r"^--on=gke needs --image; nothing was written"),
        ("gke", [], {"optim.rate": 1}, 'config has no field "optim.rate"'),
        ("tpu-vm", [], {}, r"--on=tpu-vm has one run at a time"),
    ],
)
def test_what_cannot_start_writes_nothing(sweep_file, tmp_path, on, lacking, overrides, message):
    options = {name: value for name, value in GKE.items() if name not in lacking}
    with pytest.raises(ConfigError, match=message):
        llmasos_jax.launch_sweep(sweep_file, on, tmp_path / "out", overrides=overrides, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["start.sh", "Sweep.json"])
def test_a_point_may_not_take_the_place_of_a_file_of_the_sweep(sweep_file, tmp_path, name):
    sweep_file.write_text(TEXT.replace("it's relu", name))
    with pytest.raises(ConfigError, match=f'a point may not be named "{name}"'):
        llmasos_jax.launch_sweep(sweep_file, "slurm", tmp_path / "out", **SLURM)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_comes_next(sweep_file, tmp_path, capsys):
    flags = [f"--{name}={value}" for name, value in SLURM.items()]
    words = ["launch", f"--sweep={sweep_file}", "--on=slurm", f"--out={tmp_path}/out", *flags]
    assert main([*words, "--config.train.steps=9"]) == 0
    assert load_config(tmp_path / "out" / NAMES[0] / "config.json").train.steps == 9
    said = capsys.readouterr().out
    assert f"  bash {tmp_path}/out/start.sh\n" in said
    assert said.endswith("  llmasos sweep report /shared/rates\n")
    assert main(["launch", "--on=slurm", f"--out={tmp_path}/no", *flags]) == 2
    assert "give --config=X, or --sweep=FILE" in capsys.readouterr().err
