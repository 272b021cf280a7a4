"""What a job on Ray asks for, on clusters whose machines differ; they are there by name only."""

import importlib.util

import pytest

from llmasos_jax.errors import ConfigError
from llmasos_jax.sweep.executors.ray import RayExecutor

GIB = 2**30
# A head that gives no cores, as large clusters have it, then a small machine, then one with GPUs.
MACHINES = [
    {"memory": 64.0 * GIB},
    {"CPU": 4.0, "memory": 4.0 * GIB},
    {"CPU": 16.0, "GPU": 2.0, "memory": 2.0 * GIB},
]


@pytest.fixture
def machines(monkeypatch):
    """The same for every call, and no Ray is started."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra `sweep`")
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    nodes = [{"Alive": True, "Resources": machine} for machine in MACHINES]
    nodes.append({"Alive": False, "Resources": {"CPU": 1.0, "memory": 999.0 * GIB}})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "remote", lambda **taken: lambda function: taken)
    return nodes


@pytest.mark.parametrize(
    ("options", "memory_gib", "taken"),
    [
        ({}, None, {"num_cpus": 4.0, "num_gpus": 0.0}),
        ({}, 3.0, {"num_cpus": 4.0, "num_gpus": 0.0, "memory": 3.0 * GIB}),
        ({"num_cpus": "16", "num_gpus": "2"}, None, {"num_cpus": 16.0, "num_gpus": 2.0}),
        ({"num_gpus": "0.5"}, None, {"num_cpus": 4.0, "num_gpus": 0.5}),
        ({"num_cpus": "1.5"}, None, {"num_cpus": 1.5, "num_gpus": 0.0}),
    ],
)
def test_a_job_takes_the_smallest_machine_that_has_cores(machines, options, memory_gib, taken):
    assert RayExecutor(options, memory_gib=memory_gib)._run == {"max_retries": 0, **taken}


@pytest.mark.parametrize(
    ("options", "memory_gib", "said"),
    [
        # Each of these is somewhere, but no machine has all of them.
        ({"num_cpus": "16"}, 3.0, "num_cpus=16 and num_gpus=0 with 3 GiB of memory for a job"),
        ({"num_gpus": "3"}, None, "has num_cpus=4 and num_gpus=3 for a job, which would wait"),
        ({"num_gpus": "1.5"}, None, "num_gpus=1.5: Ray shares out one GPU, not several"),
        ({"num_cpus": "-1"}, None, "num_cpus=-1 must be a number from 0 on"),
        ({"num_cpus": "nan"}, None, "num_cpus=nan must be a number from 0 on"),
    ],
)
def test_what_no_machine_has_is_refused(machines, options, memory_gib, said):
    with pytest.raises(ConfigError, match=said):
        RayExecutor(options, memory_gib=memory_gib)


def test_without_cores_anywhere_a_job_is_refused(machines):
    machines[1:] = []
    with pytest.raises(ConfigError, match="no machine of the Ray cluster has num_cpus=1 "):
        RayExecutor({})


@pytest.mark.parametrize(
    ("option", "variable", "address"),
    [(None, "", "local"), (None, "auto", "auto"), ("auto", "ray://absent:1", "auto")],
)
def test_which_cluster_is_taken(machines, monkeypatch, option, variable, address):
    """One that Ray remembers may have ended, and Ray would wait minutes for it."""
    taken = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda address, **rest: taken.append(address))
    monkeypatch.setenv("RAY_ADDRESS", variable)
    RayExecutor({} if option is None else {"address": option})
    assert taken == [address]


def test_an_address_of_the_environment_that_does_not_answer(machines, monkeypatch):
    """Ray itself would try for five minutes."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **rest: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="found no cluster at address=127.0.0.1:1 "):
        RayExecutor({})
