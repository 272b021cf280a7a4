"""Jobs on a Ray cluster."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

from llmasos_jax.errors import ConfigError, MissingExtraError, PreemptedError, did_you_mean
from llmasos_jax.sweep.executors.executor import Ended, Job
from llmasos_jax.sweep.executors.remote import MANY, RemoteJob, begun_file, stop_file
from llmasos_jax.sweep.places import Places

_NAMES = ("address", "num_cpus", "num_gpus")
_GIB = 2**30


class RayExecutor:
    """Tasks of a Ray cluster, of which every machine sees the sweep's folder and this package.

    Args:
      options: `address` of the cluster ("auto" for the one that this machine is part of; without it
        `RAY_ADDRESS`, or else a Ray of this machine alone is started, and ended with the sweep);
        `num_cpus` and `num_gpus` that each job takes (all cores of the smallest machine, and none).
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
            _check_address(options.get("address", ""))
            try:
                ray.init(
                    address=options.get("address"),
                    log_to_driver=False,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                said = str(error).strip().splitlines()[0]
                raise ConfigError(f"--executor=ray found no cluster: {said}") from error
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = {"num_cpus": min(m.get("CPU", 0.0) for m in machines), "num_gpus": 0.0, **given}
        if not any(
            m.get("CPU", 0.0) >= resources["num_cpus"]
            and m.get("GPU", 0.0) >= resources["num_gpus"]
            for m in machines
        ):
            self.close()
            raise ConfigError(
                f"no machine of the Ray cluster has num_cpus={resources['num_cpus']:g} and "
                f"num_gpus={resources['num_gpus']:g} for a job, which would wait for ever; ask for "
                "less"
            )
        most_gib = max(m.get("memory", 0.0) for m in machines) / _GIB
        if memory_gib is not None:
            if memory_gib > most_gib:
                self.close()
                raise ConfigError(
                    f"--memory={memory_gib:g} GiB is more than any machine of the Ray cluster has "
                    f"({most_gib:.1f}), and a job would wait for ever; ask for less"
                )
            resources["memory"] = memory_gib * _GIB
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
        return  # "auto", or none
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
                raise ConfigError(f"--executor-option {name}={options[name]} must be at least 0")
    return parsed
