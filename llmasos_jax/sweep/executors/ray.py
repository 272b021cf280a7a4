"""Jobs on a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos_jax.errors import ConfigError, MissingExtraError, PreemptedError, did_you_mean
from llmasos_jax.sweep.executors.executor import Ended, Job
from llmasos_jax.sweep.executors.remote import MANY, RemoteJob, begun_file, stop_file
from llmasos_jax.sweep.places import Places

_NAMES = ("address", "num_cpus", "num_gpus")
_GIB = 2**30
# Ray's names for what a task takes, and for what a machine has.
_OF_MACHINE = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


class RayExecutor:
    """Tasks of a Ray cluster, of which every machine sees the sweep's folder and this package.

    Args:
      options: `address` of the cluster ("auto" for the one that this machine is part of; without it
        `RAY_ADDRESS`, or else a Ray of this machine alone is started, and ended with the sweep);
        `num_cpus` and `num_gpus` that each job takes (all cores of the smallest machine that has
        some, and no GPU).
      jobs: that wait or run at once.
      memory_gib: what a job may hold in memory, in GiB, which Ray sets aside for it; None for no
        limit.

    Raises:
      ConfigError: an option is unknown or does not fit, or no cluster is there.
      MissingExtraError: Ray is not installed.

    References:
      Moritz et al., 2018, arXiv 1712.05889; docs.ray.io
    """

    def __init__(
        self, options: Mapping[str, str], jobs: int = MANY, memory_gib: float | None = None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(
                "--executor=ray needs ray; install it with: pip install 'llmasos-jax[sweep]'"
            ) from error
        given = _parsed(options)
        self.at_once, self._memory_gib = jobs, memory_gib
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            # Without "local", Ray would take a cluster that it remembers, ended or not.
            address = options.get("address") or os.environ.get("RAY_ADDRESS") or "local"
            _check_address(address)
            try:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                said = str(error).strip().splitlines()[0]
                raise ConfigError(f"--executor=ray found no cluster: {said}") from error
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = _resources(given, memory_gib, machines)
        if not any(_has(machine, resources) for machine in machines):
            self.close()
            memory = "" if memory_gib is None else f" with {memory_gib:g} GiB of memory"
            raise ConfigError(
                f"no machine of the Ray cluster has num_cpus={resources['num_cpus']:g} and "
                f"num_gpus={resources['num_gpus']:g}{memory} for a job, which would wait for ever; "
                "ask for less"
            )
        # A job that fails is reported, not tried again: it would fail in the same way.
        self._run = ray.remote(max_retries=0, **resources)(_run)

    def start(self, places: Places, group: str) -> Job:
        """See `Executor`."""
        stop_file(places, group).unlink(missing_ok=True)
        begun_file(places, group).unlink(missing_ok=True)
        job = RemoteJob(str(places.root.absolute()), group, self._memory_gib)
        return _RayJob(self._run.remote(job), places, group)

    def close(self) -> None:
        """See `Executor`; a Ray that was there before stays."""
        import ray

        if self._is_ours:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Refuses a cluster that does not answer; Ray itself would try for five minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto" or "local"
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--executor=ray found no cluster at address={address} ({error}); start one with "
            "`ray start --head`"
        ) from error


def _run(job: RemoteJob) -> Ended:
    return job()


class _RayJob:
    def __init__(self, reference: Any, places: Places, group: str) -> None:
        self._reference, self._places, self._group = reference, places, group

    def poll(self) -> Ended | None:
        """See `Job`."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        done, _ = ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return ray.get(self._reference)
        except TaskCancelledError:
            return Ended(PreemptedError.exit_status)
        except RayTaskError as error:
            return Ended(1, str(error).strip().splitlines()[-1])
        except RayError as error:  # the worker or its machine is gone
            said = str(error).strip().splitlines()
            return Ended(1, f"Ray lost the job ({type(error).__name__}): {said[0] if said else ''}")

    def stop(self) -> None:
        """See `Job`."""
        import ray

        stop_file(self._places, self._group).touch()
        if not begun_file(self._places, self._group).exists():
            ray.cancel(self._reference)  # it waits for room, and would not see the file


def _parsed(options: Mapping[str, str]) -> dict[str, float]:
    """What each job takes."""
    unknown = next((name for name in options if name not in _NAMES), None)
    if unknown is not None:
        raise ConfigError(f"--executor=ray has no option {unknown}{did_you_mean(unknown, _NAMES)}")
    parsed = {}
    for name in ("num_cpus", "num_gpus"):
        if name in options:
            try:
                parsed[name] = float(options[name])
            except ValueError as error:
                raise ConfigError(
                    f"--executor-option {name}={options[name]} is not a number"
                ) from error
            if not 0.0 <= parsed[name] < 1e6:
                raise ConfigError(
                    f"--executor-option {name}={options[name]} must be a number from 0 on"
                )
            if name == "num_gpus" and parsed[name] > 1.0 and not parsed[name].is_integer():
                raise ConfigError(
                    f"--executor-option num_gpus={options[name]}: Ray shares out one GPU, not "
                    "several; give a part of 1, or a whole number"
                )
    return parsed


def _resources(
    given: Mapping[str, float], memory_gib: float | None, machines: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What each job takes, by Ray's names for a task."""
    # The head of a cluster often has no cores to give.
    cores = min((m["CPU"] for m in machines if m.get("CPU")), default=1.0)
    memory = {} if memory_gib is None else {"memory": memory_gib * _GIB}
    return {"num_cpus": cores, "num_gpus": 0.0, **given, **memory}


def _has(machine: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    return all(machine.get(_OF_MACHINE[name], 0.0) >= most for name, most in resources.items())
