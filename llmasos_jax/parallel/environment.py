"""What the environment says of a run's processes: how many, which one this is, where process 0 is.

Each reader knows one launcher and reads variables alone; only a plain TPU VM has to be asked over
its metadata server. Nothing here imports JAX.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.config.devices import HostsConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.metadata import metadata

# Two ports: the run's own, and the next one for JAX's coordination service.
DEFAULT_PORT = 8476
_FIRST_DERIVED_PORT, _DERIVED_PORTS = 61440, 2048

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Attributes:
      count: processes of the run.
      index: this one's number, from 0.
      host, port: where process 0 listens; JAX's own service takes the port after it.
      source: who said so, as a person reads it ("Slurm").
      is_per_device: whether the launcher starts a process for each GPU of a host.
    """

    count: int
    index: int
    host: str
    port: int
    source: str
    is_per_device: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ConfigError(
                f"{self.source}: process {self.index} of {self.count} cannot be; set "
                "hosts.coordinator, hosts.count and hosts.index by hand"
            )
        if not 0 < self.port < 65535:
            raise ConfigError(
                f"{self.source}: port {self.port} of process 0 must be from 1 to 65534 (the next "
                "one is used too)"
            )

    def __str__(self) -> str:
        return (
            f"{self.count} processes, {self.source}, coordinator {self.host}:{self.port}, this is "
            f"{self.index}"
        )


def find_place(hosts: HostsConfig, env: Environment | None = None) -> Place | None:
    """This process's place in its run; None if it is the only one.

    Order: the config, `LLMASOS_*` variables, Slurm, Open MPI, another MPI (PMI), a TPU pod on
    Kubernetes, an indexed Kubernetes Job, a TPU VM's metadata.

    Args:
      hosts: `coordinator`, `count` and `index` go before all else.
      env: variables; None takes this process's.

    Raises:
      ConfigError: the environment says half of it; the message says what to set.

    Example:
      >>> env = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "MASTER_ADDR": "node0"}
      >>> print(find_place(HostsConfig(), env))
      4 processes, Open MPI, coordinator node0:8476, this is 2
    """
    if hosts.coordinator is not None:
        place = _at(hosts.coordinator, hosts.count or 1, hosts.index or 0, "config.hosts")
        return place if place.count > 1 else None
    env = os.environ if env is None else env
    for reader in _READERS:
        found = reader(env)
        if found is not None:
            return found if found.count > 1 else None
    return None


def _at(
    address: str, count: int, index: int, source: str, *, port: int = DEFAULT_PORT, **more: bool
) -> Place:
    """A place from "host", "host:port" or "[ipv6]:port"."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::(\d+))?", address)
    if found is None:
        raise ConfigError(
            f'{source}: "{address}" is not host:port (an IPv6 address stands in []: [::1]:8476)'
        )
    return Place(count, index, found[1].strip("[]"), int(found[2] or port), source, **more)


def _number(env: Environment, name: str, source: str) -> int:
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{source}: {name}={env.get(name)!r} is not a number; set it, or hosts.coordinator, "
            "hosts.count and hosts.index"
        ) from error


def _own(env: Environment) -> Place | None:
    """`LLMASOS_COORDINATOR`, `LLMASOS_NUM_PROCESSES`, `LLMASOS_PROCESS_INDEX`."""
    source = "LLMASOS variables"
    if "LLMASOS_NUM_PROCESSES" not in env:
        return None
    count = _number(env, "LLMASOS_NUM_PROCESSES", source)
    if count == 1:
        return Place(1, 0, "localhost", DEFAULT_PORT, source)
    address = env.get("LLMASOS_COORDINATOR")
    if not address:
        raise ConfigError(f"{source}: set LLMASOS_COORDINATOR=host:port of process 0 too")
    own = "LLMASOS_PROCESS_INDEX"
    name = own if own in env else "JOB_COMPLETION_INDEX"
    return _at(address, count, _number(env, name if name in env else own, source), source)


def _slurm(env: Environment) -> Place | None:
    nodes = env.get("SLURM_STEP_NODELIST")
    if "SLURM_PROCID" not in env or not nodes:
        return None  # not in a step: a batch script before its srun
    count = _number(
        env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS", "Slurm"
    )
    # Each step of each job has a port of its own, so that two on a node do not meet.
    step = int(env.get("SLURM_STEP_ID", "0")) if env.get("SLURM_STEP_ID", "0").isdigit() else 0
    job = _number(env, "SLURM_JOB_ID", "Slurm")
    port = _FIRST_DERIVED_PORT + 2 * ((job + 37 * step) % _DERIVED_PORTS)
    host = env.get("MASTER_ADDR") or first_node(nodes)
    index = _number(env, "SLURM_PROCID", "Slurm")
    return _at(host, count, index, "Slurm", port=port, is_per_device=True)


def first_node(nodes: str) -> str:
    """The first name of a Slurm list of nodes.

    Example:
      >>> first_node("tpu[007-015,021],login1"), first_node("a,b"), first_node("r[1-2]n[08,09]-ib")
      ('tpu007', 'a', 'r1n08-ib')
    """
    depth, end = 0, len(nodes)
    for at, char in enumerate(nodes):
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "," and depth == 0:
            end = at
            break
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", nodes[:end])


def _open_mpi(env: Environment) -> Place | None:
    if "OMPI_COMM_WORLD_SIZE" not in env:
        return None
    count = _number(env, "OMPI_COMM_WORLD_SIZE", "Open MPI")
    index = _number(env, "OMPI_COMM_WORLD_RANK", "Open MPI")
    on_one = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == env["OMPI_COMM_WORLD_SIZE"]
    # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911: where mpirun runs, which has rank 0 as a rule
    launcher = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", env.get("OMPI_MCA_orte_hnp_uri", ""))
    found = launcher and (launcher[1] or f"[{launcher[2]}]")
    return _mpi(env, count, index, "Open MPI", on_one=on_one, found=found)


def _pmi(env: Environment) -> Place | None:
    if "PMI_SIZE" not in env or "PMI_RANK" not in env:
        return None
    count, index = _number(env, "PMI_SIZE", "MPI"), _number(env, "PMI_RANK", "MPI")
    on_one = env.get("MPI_LOCALNRANKS") == env["PMI_SIZE"]
    return _mpi(env, count, index, "MPI (PMI)", on_one=on_one, found=None)


def _mpi(
    env: Environment, count: int, index: int, source: str, *, on_one: bool, found: str | None
) -> Place:
    """MPI says who a process is, but not where the first one runs."""
    address = env.get("MASTER_ADDR") or ("localhost" if on_one else found)
    if address is None and count > 1:
        raise ConfigError(
            f"{source} starts {count} processes and does not say where the first one is; give it: "
            "`export MASTER_ADDR=HOST` (with `mpirun -x MASTER_ADDR`), or hosts.coordinator, "
            "hosts.count and hosts.index"
        )
    port = int(env["MASTER_PORT"]) if env.get("MASTER_PORT", "").isdigit() else DEFAULT_PORT
    return _at(address or "localhost", count, index, source, port=port, is_per_device=True)


def _tpu_on_kubernetes(env: Environment) -> Place | None:
    workers = [name for name in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if not workers or "TPU_WORKER_ID" not in env:
        return None
    return _tpu(env, workers, _number(env, "TPU_WORKER_ID", "TPU pod"), env)


def _tpu(env: Environment, workers: list[str], worker: int, megascale: Environment) -> Place:
    """Several slices count on: those of slice 0 come first."""
    slices = int(megascale.get("MEGASCALE_NUM_SLICES") or 1)
    number = int(megascale.get("MEGASCALE_SLICE_ID") or 0)
    first = megascale.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    source = "TPU pod" if slices == 1 else f"TPU pod of {slices} slices"
    index = number * len(workers) + worker
    # The port in MEGASCALE's address is libtpu's own.
    return _at(re.sub(r":\d+$", "", first), len(workers) * slices, index, source)


def _kubernetes(env: Environment) -> Place | None:
    if "KUBERNETES_SERVICE_HOST" not in env or "JOB_COMPLETION_INDEX" not in env:
        return None
    index = env["JOB_COMPLETION_INDEX"]
    raise ConfigError(
        f"this is pod {index} of an indexed Kubernetes Job, which does not say how many there are: "
        "set LLMASOS_NUM_PROCESSES (1 for a run of its own) and LLMASOS_COORDINATOR=JOB-0.SERVICE "
        "in the pod's env (`llmasos launch --on=gke` writes such files)"
    )


def _tpu_vm(env: Environment) -> Place | None:
    """A TPU VM that is reached over ssh: only its metadata server knows its neighbours."""
    if env.get("TPU_SKIP_MDS_QUERY") or not _has_tpu():
        return None
    worker, listed = _attribute("agent-worker-number"), _attribute("worker-network-endpoints")
    if worker is None or listed is None:
        return None
    # Either names, or name:id:address.
    workers = [entry.split(":")[-1] for entry in listed.split(",") if entry]
    row = r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*?)'?\s*$"
    lines = re.findall(row, _attribute("tpu-env") or "", flags=re.MULTILINE)
    megascale = dict(lines) | {k: v for k, v in env.items() if k.startswith("MEGASCALE_")}
    return _tpu(env, workers, int(worker), megascale)


def _attribute(name: str) -> str | None:
    return metadata(f"attributes/{name}", tries=3)


def _has_tpu() -> bool:
    product = Path("/sys/class/dmi/id/product_name")
    try:
        is_google = "Google" in product.read_text(encoding="utf-8")
    except OSError:
        return False
    return is_google and (any(Path("/dev").glob("accel*")) or Path("/dev/vfio/0").exists())


def hostname() -> str:
    """This machine's name, as its log lines have it."""
    return socket.gethostname()


# A reader gives None where its launcher did not start this process.
_READERS: tuple[Callable[[Environment], Place | None], ...] = (
    _own,
    _slurm,
    _open_mpi,
    _pmi,
    _tpu_on_kubernetes,
    _kubernetes,
    _tpu_vm,
)
