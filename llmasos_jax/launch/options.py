"""What a launch has to be told, and what each kind of cluster needs of it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from llmasos_jax.errors import ConfigError


@dataclass(frozen=True)
class LaunchOptions:
    """What only the user knows.

    Attributes:
      workdir: the training folder as the hosts see it; all of them share it.
      image: a container image that has `llmasos`, with the extra `tpu`.
      bucket: of Cloud Storage, mounted at /data in each pod; `workdir` lies in it.
      namespace: of Kubernetes.
      service_account: of Kubernetes, with access to the bucket; None takes the namespace's default.
      queue: of Kueue; None does without.
      project, zone: of Google Cloud.
      cluster: name of the cluster that XPK knows.
      tpu: name of the TPU VM.
      partition: of Slurm.
      nodes: of Slurm; each runs one process with all its GPUs.
      gpus_per_node: of Slurm; None for machines without GPUs.
      time: limit of a Slurm job, "24:00:00" or "3-12:00:00".
      save_s: seconds between SIGTERM and the end of a process, to finish a step and save it; None
        takes `SAVE_S`.
      account: that Slurm charges; None takes the user's own.
      setup: a shell command that comes first on each host, such as one that activates an
        environment.
      max_restarts: how often a run that was preempted, or whose machine failed, starts again.
      restart_lost: whether status 3 starts it again too: a lost host, but a loss that is not finite
        as well.
    """

    workdir: str | None = None
    image: str | None = None
    bucket: str | None = None
    namespace: str = "default"
    service_account: str | None = None
    queue: str | None = None
    project: str | None = None
    zone: str | None = None
    cluster: str | None = None
    tpu: str | None = None
    partition: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None
    save_s: int | None = None
    account: str | None = None
    setup: str | None = None
    max_restarts: int = 10
    restart_lost: bool = False

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ConfigError(f"--max-restarts={self.max_restarts} must not be negative")
        for name in ("nodes", "gpus_per_node"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{flag(name)}={value} must be at least 1")
        if self.save_s is not None and not 30 <= self.save_s <= 65535:
            raise ConfigError(f"--save-s={self.save_s} must be from 30 to 65535 seconds")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and (not value.strip() or "\n" in value):
                raise ConfigError(f"{flag(field.name)}={value!r} has to be one line of text")
        for name in ("partition", "account"):  # in lines that Slurm reads, which have no quotes
            if len((getattr(self, name) or "").split()) > 1:
                raise ConfigError(f"{flag(name)}={getattr(self, name)!r} has to be one word")

    @property
    def fatal_statuses(self) -> list[int]:
        """Exit statuses after which another start would end in the same way."""
        return [1, 2] if self.restart_lost else [1, 2, 3]


# Slurm takes these seconds off the job's time, Kubernetes only waits so long for a slow end.
SAVE_S = {"gke": 600, "xpk": 600, "slurm": 120}

# What each needs, and what else it reads.
REQUIRED = {
    "gke": ("topology", "workdir", "image", "bucket"),
    "xpk": ("topology", "workdir", "image", "cluster", "project", "zone"),
    "slurm": ("workdir", "partition", "nodes", "time"),
    "tpu-vm": ("topology", "workdir", "tpu", "project", "zone"),
}
OPTIONAL = {
    "gke": ("slices", "namespace", "service_account", "queue", "setup")
    + ("save_s", "max_restarts", "restart_lost"),
    "xpk": ("slices", "setup", "save_s", "max_restarts", "restart_lost"),
    "slurm": ("gpus_per_node", "account", "setup", "save_s", "max_restarts", "restart_lost"),
    "tpu-vm": ("setup",),
}


def flag(name: str) -> str:
    """The option of the command line for a field."""
    return f"--{name.replace('_', '-')}"


def check_options(on: str, options: LaunchOptions, topology: str | None, slices: int) -> None:
    """Raises ConfigError for all that lacks, and for what this kind of cluster does not read."""
    values = dataclasses.asdict(options) | {"topology": topology}
    lacking = [flag(name) for name in REQUIRED[on] if values[name] is None]
    if lacking:
        raise ConfigError(
            f"--on={on} needs {' '.join(lacking)}; nothing was written, since a file with gaps "
            "would start nothing"
        )
    known = {*REQUIRED[on], *OPTIONAL[on]}
    if on == "slurm" and not options.restart_lost:
        known -= {"max_restarts"}  # status 75 goes back into the queue as often as it comes
    defaults = dataclasses.asdict(LaunchOptions()) | {"topology": None}
    extra = [flag(n) for n, v in values.items() if n not in known and v != defaults[n]]
    if slices > 1 and "slices" not in known:
        extra.append(f"--slices={slices}")
    if extra:
        other = ", or add --restart-lost" if on == "slurm" and extra == ["--max-restarts"] else ""
        raise ConfigError(f"--on={on} has no use for {' '.join(extra)}; leave it out{other}")
    if not str(options.workdir).startswith("/"):
        raise ConfigError(
            f"--workdir={options.workdir} is not a whole path, and hosts start in another folder; "
            "give it as all of them see it: --workdir=/..."
        )
    if on == "slurm":
        _check_time(str(options.time), options.save_s or SAVE_S[on])


def slurm_seconds(time: str) -> int | None:
    """Seconds of a time limit as Slurm reads it; None if it does not.

    Its forms are M, M:S, H:M:S, D-H, D-H:M and D-H:M:S. UNLIMITED, which it takes too, is not among
    them: such a job is never asked to save.

    Example:
      >>> slurm_seconds("90"), slurm_seconds("24:00:00"), slurm_seconds("2-12"), slurm_seconds("1h")
      (5400, 86400, 216000, None)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time, flags=re.ASCII)
    if found is None:
        return None
    days, *parts = (None if part is None else int(part) for part in found.groups())
    given = [part for part in parts if part is not None]
    if days is None and len(given) < 3:
        given = [0, *given]  # the first is minutes
    hours, minutes, seconds = [*given, 0, 0][:3]
    return ((24 * (days or 0) + hours) * 60 + minutes) * 60 + seconds


def _check_time(time: str, save_s: int) -> None:
    """Refuses a limit that Slurm does not read, or that is over before it has begun."""
    seconds = slurm_seconds(time)
    if seconds is None:
        raise ConfigError(
            f"--time={time} is not a time limit of Slurm; write HH:MM:SS, D-HH:MM:SS or minutes: "
            "--time=24:00:00"
        )
    # It may send the signal up to a minute earlier.
    if seconds < save_s + 180:
        raise ConfigError(
            f"--time={time} is {seconds} seconds, and --save-s={save_s} before the end the run is "
            f"told to stop; give at least {-(-(save_s + 180) // 60)} minutes"
        )


def object_name(name: str) -> str:
    """A config's name as clusters take it: letters, digits and hyphens.

    Example:
      >>> object_name("llama2_7b")
      'llama2-7b'
    """
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    if not made or not made[0].isalpha():
        made = f"run-{made}".strip("-")
    return made
