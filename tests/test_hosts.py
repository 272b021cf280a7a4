"""Several processes as one run: who they are, what they read, and what they do without one."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import host_runs
import jax
import numpy as np
import pytest
import tolerances
from jax.sharding import NamedSharding, PartitionSpec

import llmasos_jax
from llmasos_jax.config.build import load_config
from llmasos_jax.config.devices import HostsConfig, MeshConfig
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import CheckpointError, ConfigError, DataError, TrainingFailedError
from llmasos_jax.parallel import distributed
from llmasos_jax.parallel import roll as rolls
from llmasos_jax.parallel.environment import Place, find_place, first_node
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.place import own_rows, put_rows
from llmasos_jax.parallel.relay import Relay

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "tpu[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}
SLICES = TPU | {
    "MEGASCALE_COORDINATOR_ADDRESS": "job-slice-0-0.job:8080",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
OWN = {"LLMASOS_NUM_PROCESSES": "2", "LLMASOS_COORDINATOR": "job-0.svc:9000"}
ENDS = ("out", "log")
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (SLURM, (4, 2, "tpu007", 61440 + 2 * (4099 % 2048), "Slurm")),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "4099", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # before srun
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, (4, 3, "localhost", 8476, "Open MPI")),
        (MPI | URI, (4, 3, "10.96.0.1", 8476, "Open MPI")),
        (MPI | {"MASTER_ADDR": "n0", "MASTER_PORT": "99"}, (4, 3, "n0", 99, "Open MPI")),
        (
            {"PMI_SIZE": "2", "PMI_RANK": "1", "MASTER_ADDR": "n0"},
            (2, 1, "n0", 8476, "MPI (PMI)"),
        ),
        (TPU, (4, 1, "a", 8476, "TPU pod")),
        (SLICES, (8, 5, "job-slice-0-0.job", 8476, "TPU pod of 2 slices")),
        (SLICES | JOB, (8, 5, "job-slice-0-0.job", 8476, "TPU pod of 2 slices")),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (JOB | OWN, (2, 1, "job-0.svc", 9000, "LLMASOS variables")),
        (SLURM | {"LLMASOS_NUM_PROCESSES": "1"}, None),
    ],
)
def test_place_is_read_from_the_environment(env, expected) -> None:
    place = find_place(HostsConfig(), env)
    found = place and (place.count, place.index, place.host, place.port, place.source)
    assert found == expected


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (MPI, "export MASTER_ADDR"),
        (JOB, "set LLMASOS_NUM_PROCESSES"),
        (OWN, "LLMASOS_PROCESS_INDEX"),
        ({"LLMASOS_NUM_PROCESSES": "2"}, "LLMASOS_COORDINATOR"),
        (SLURM | {"SLURM_PROCID": "4"}, "process 4 of 4 cannot be"),
        (TPU | {"TPU_WORKER_ID": "x"}, "TPU_WORKER_ID='x' is not a number"),
    ],
)
def test_half_an_environment_says_what_is_missing(env, words) -> None:
    with pytest.raises(ConfigError, match=words):
        find_place(HostsConfig(), env)


def test_config_goes_before_the_environment() -> None:
    hosts = HostsConfig(coordinator="[::1]:1234", count=3, index=2)
    place = find_place(hosts, SLURM)
    assert place == Place(3, 2, "::1", 1234, "config.hosts")
    assert str(place) == "3 processes, config.hosts, coordinator ::1:1234, this is 2"
    assert first_node("gpu-a[3,5],gpu-b1") == "gpu-a3"


@pytest.mark.parametrize(
    ("mesh", "spec", "first_half"),
    [
        (MeshConfig(), "data", [0, 1, 2, 3]),
        (MeshConfig(data=2, tensor=4), "data", [0, 1, 2, 3]),
        (MeshConfig(data=1, tensor=8), "data", range(8)),  # each row is on both hosts
        (MeshConfig(data=1, fsdp=(4,), tensor=2), ("data", "fsdp"), [0, 1, 2, 3]),
        (MeshConfig(data=2, fsdp=(4,)), "fsdp", range(8)),
    ],
)
def test_own_rows_are_those_that_the_devices_hold(mesh, spec, first_half) -> None:
    built = make_mesh(mesh)
    sharding = NamedSharding(built, PartitionSpec(spec))
    devices = list(built.devices.flat)
    assert own_rows(sharding, 8, devices[:4]) == tuple(first_half)
    assert own_rows(sharding, 8) == tuple(range(8))
    rows = np.arange(16).reshape(8, 2)
    np.testing.assert_array_equal(put_rows(rows, sharding, 8), rows)


@pytest.mark.parametrize("parts", [[range(8)], [range(4), range(4, 8)], [[0, 3, 5], [1, 2, 4, 6]]])
def test_batch_is_the_same_whoever_reads_it(parts, tmp_path) -> None:
    cfg = load_config(str(host_runs.prepare(tmp_path / "run")))
    whole = open_data(cfg, ByteTokenizer(), tmp_path / "cache")
    for own in parts:
        part = open_data(cfg, ByteTokenizer(), tmp_path / "cache", own_rows=own)
        for found, all_rows in ((part.train, whole.train), (part.heldout, whole.heldout)):
            np.testing.assert_array_equal(found[1].tokens, all_rows[1].tokens[list(own)])
        part.train.seek(3)
        np.testing.assert_array_equal(next(part.train).targets, whole.train[3].targets[list(own)])
        part.close()


@pytest.fixture
def ended(monkeypatch):
    """What the watch says when it would end the process."""
    said = []

    def die(self, what):
        said.append((self.place.index, what))
        self._set_left()

    monkeypatch.setattr(rolls.Roll, "_die", die)
    return said


def answer_all(count, **limits):
    """A roll of `count` in this process, in order."""
    hosts = HostsConfig(**{"heartbeat_timeout_s": 2, "start_timeout_s": 5} | limits)
    port, found = host_runs.free_port(), {}

    def come(index):
        place = Place(count, index, "localhost", port, "test")
        found[index] = rolls.answer(place, f"host{index}", hosts)

    threads = [threading.Thread(target=come, args=(index,)) for index in range(count)]
    for thread in reversed(threads):  # process 0 may come last
        thread.start()
    for thread in threads:
        thread.join()
    return [found[index] for index in range(count)]


def on_all(members, action):
    """Runs `action(roll)` in a thread for each; returns the results in order."""
    results = {}
    threads = [
        threading.Thread(target=lambda m=m: results.update({m.place.index: action(m)}))
        for m in members
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return [results[m.place.index] for m in members]


def test_roll_gathers_agrees_on_a_step_and_ends(ended) -> None:
    members = answer_all(3)
    assert [m.names for m in members] == [["host0", "host1", "host2"]] * 3
    assert on_all(members, lambda m: m.gather(m.place.index**2)) == [[0, 1, 4]] * 3

    def train(member):
        for step in range(1, 10_000):
            if member.place.index == 1 and step == 20:
                member.request_stop("SIGTERM")
            why = member.begin(step)
            if why:
                return step, why
            time.sleep(0.001 * (1 + member.place.index))
        return None

    found = on_all(members, train)
    assert {step for step, _ in found} == {found[0][0]} and found[0][0] >= 20
    assert [why for _, why in found] == ["SIGTERM on process 1 (host1)", "SIGTERM"] + [
        "SIGTERM on process 1 (host1)"
    ]
    on_all(members, lambda m: m.leave())
    assert not ended


def test_roll_names_who_is_lost_and_why(ended) -> None:
    members = answer_all(3)
    members[2]._line._socket.shutdown(socket.SHUT_RDWR)  # as at the end of a process
    deadline_s = time.monotonic() + 10
    while len(ended) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    told = dict(entry for entry in ended if entry[0] != 2)
    assert told[0] == told[1]
    assert told[0].startswith("process 2 (host2) is lost: it is no longer running")


def test_failure_is_passed_on_with_its_words(ended) -> None:
    members = answer_all(2)
    members[1].fail("data.path: no such folder")
    deadline_s = time.monotonic() + 10
    while not ended and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert ended == [(0, "process 1 (host1) failed: data.path: no such folder")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (DataError("data.path: no such folder"), False),
    ],
)
def test_broken_collectives_are_told_from_own_errors(error, expected) -> None:
    wrapped = CheckpointError("cannot write a checkpoint")
    wrapped.__cause__ = error
    assert distributed._is_of_another(error) is expected
    assert distributed._is_of_another(wrapped) is expected


def test_missing_processes_are_named() -> None:
    hosts = HostsConfig(start_timeout_s=1)
    place = Place(3, 0, "localhost", host_runs.free_port(), "test")
    with pytest.raises(TrainingFailedError, match=r"1 of 3 .* missing: 1, 2; there: 0 \(here\)"):
        rolls.answer(place, "here", hosts)


def test_who_was_not_let_in_is_named_too() -> None:
    hosts = HostsConfig(start_timeout_s=2)
    port, caught = host_runs.free_port(), []

    def come():
        try:
            rolls.answer(Place(4, 1, "localhost", port, "test"), "there", hosts)
        except ConfigError as error:
            caught.append(str(error))

    other = threading.Thread(target=come)
    other.start()
    words = r"missing: 1, 2; there: 0 \(here\); 1 \(there\) was not let in: it counts 4 processes"
    with pytest.raises(TrainingFailedError, match=words):
        rolls.answer(Place(3, 0, "localhost", port, "test"), "here", hosts)
    other.join()
    assert "process 1 is not let in: it counts 4 processes, process 0 3 (test)" in caught[0]


def test_another_program_at_the_port_is_told_from_process_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        place = Place(2, 1, "127.0.0.1", stranger.getsockname()[1], "test")

        def greet():
            with stranger.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ConfigError, match="another program answers at 127.0.0.1:"):
            rolls.answer(place, "here", HostsConfig(start_timeout_s=5))
        thread.join()


def test_relay_keeps_a_broken_end_from_the_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as far:
        relay = Relay("127.0.0.1", far.getsockname()[1])
        host, port = relay.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as near:
            end, _ = far.accept()
            near.sendall(b"ask")
            assert end.recv(10) == b"ask"
            end.sendall(b"answer")
            assert near.recv(10) == b"answer"
            end.close()
            near.settimeout(0.5)
            with pytest.raises(TimeoutError):  # and not the end of the connection
                near.recv(10)
        relay.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config with its text, and one compilation cache for all runs of it."""
    made = tmp_path_factory.mktemp("hosts") / "run"
    host_runs.prepare(made)
    return made


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_slurm_file_trains_two_processes_as_one_and_one_goes_on(folder) -> None:
    cfg = load_config(str(folder / "small.py"))
    options = {"partition": "cpu", "nodes": 2, "time": "1:00:00", "workdir": str(folder / "run")}
    llmasos_jax.launch(cfg, "slurm", folder / "slurm", **options)
    job = host_runs.slurm(folder / "slurm" / "train.sbatch", 2, "--json")
    llmasos_jax.train(cfg, folder / "one")
    said, log = job.communicate(timeout=120)
    out, errors = ([(folder / "slurm" / f"{i}.{end}").read_text() for i in (0, 1)] for end in ENDS)
    assert job.returncode == 0 and said == "", (log, errors)
    two, one = losses(folder / "run"), losses(folder / "one")
    assert list(two) == list(range(1, 7))
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=tolerances.PARITY)
    assert json.loads(out[0])["step"] == 6 and out[1] == ""
    assert "step 6" in errors[0] and "step" not in errors[1]  # one process speaks for all
    assert "2 processes, Slurm, coordinator localhost:" in errors[1]
    shutil.rmtree(folder / "run" / "checkpoints" / "6")
    (folder / "run" / "result.json").unlink()
    llmasos_jax.train(cfg, folder / "run")
    again = losses(folder / "run")
    np.testing.assert_allclose([*again.values()], [*one.values()], rtol=tolerances.PARITY)
    assert jax.process_count() == 1


def test_one_that_is_stopped_or_killed_takes_the_other_with_it(folder) -> None:
    options = ["--config.train.steps=1000000", "--config.checkpoint.every_steps=50"]
    run = host_runs.Run(folder, 2, workdir="long", options=options, quick=True)
    run.wait_for_step(3)
    run.send(1, signal.SIGTERM)
    assert run.wait() == [75, 75], run.log(0) + run.log(1)
    saved = max(run.losses())
    assert f"SIGTERM on process 1 ({socket.gethostname()}): saved at step {saved} " in run.log(0)
    assert f"llmasos: SIGTERM: saved at step {saved} " in run.log(1)
    again = host_runs.Run(folder, 2, workdir="long", options=options, quick=True)
    again.wait_for_step(saved + 2)
    start_s = time.monotonic()
    again.send(0, signal.SIGKILL)
    assert again.wait(without=0) == [3], again.log(1)
    assert time.monotonic() - start_s < 10
    (line,) = again.errors(1)
    assert f"process 0 ({socket.gethostname()}) is lost: it is no longer running" in line
    assert "start the run again on all hosts: it goes on from step" in line


def test_a_thread_that_aborts_leaves_the_roll_a_moment() -> None:
    program = """
import ctypes, os, threading, time
from llmasos_jax.parallel.abort import delay_abort
delay_abort()
threading.Thread(target=ctypes.CDLL(None).abort).start()  # without the lock of Python
time.sleep(0.5)
print("who is lost", flush=True)
os._exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "who is lost\n")


def test_another_config_on_one_host_is_refused_by_all(folder) -> None:
    one = (1, ["--config.optim.learning_rate=0.5"])
    run = host_runs.Run(folder, 2, workdir="other", one=one, by_config=False)
    statuses = run.wait()
    assert set(statuses) <= {2, 3} and 2 in statuses
    for index in range(2):
        (line,) = run.errors(index)
        assert "another config than process 0: optim.learning_rate: 0.01 -> 0.5" in line
