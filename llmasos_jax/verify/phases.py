"""A run as real processes of `llmasos train` or `finetune`, on one host or on several of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.errors import ConfigError, TrainingFailedError
from llmasos_jax.verify.witness import VARIABLE, Orders

_DEVICES = "--xla_force_host_platform_device_count"
# After one process of several has killed itself, the machine is taken to be gone.
_POLLED_EVERY_S = 0.02


@dataclass(frozen=True)
class Phase:
    """The processes that a run has between two kills.

    Attributes:
      config: path of the resolved config.
      workdir: the training folder.
      is_tuning: whether the command is `finetune`.
      orders: of the hook inside.
      hosts: processes, on this machine.
      devices: of all of them, CPU devices that stand in for the run's; None leaves what there is.
    """

    config: Path
    workdir: Path
    is_tuning: bool
    orders: Orders
    hosts: int = 1
    devices: int | None = None

    def run(self) -> int:
        """Runs the processes until they end, or one is killed; the status of the first that ends.

        Raises:
          ConfigError: the run was refused; the message is its own.
          TrainingFailedError: it failed.
        """
        folder = Path(self.orders.folder)
        folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        running = [self._start(index, port, folder) for index in range(self.hosts)]
        try:
            status = _first_end(running)
        finally:
            for process in running:
                process.kill()
                process.wait()
        if status > 0:
            said = (folder / "log-0.txt").read_text(encoding="utf-8", errors="replace")
            lines = [x for x in said.splitlines() if x.startswith("llmasos: ")] or [f"see {folder}"]
            kind = ConfigError if status == ConfigError.exit_status else TrainingFailedError
            raise kind(re.sub(r"^llmasos: (error: )?", "", lines[-1]))
        return status

    def _start(self, index: int, port: int, folder: Path) -> subprocess.Popen:
        words = [sys.executable, "-m", "llmasos", "finetune" if self.is_tuning else "train"]
        words += [f"--config={self.config}", f"--workdir={self.workdir}"]
        with (folder / f"log-{index}.txt").open("wb") as log:
            return subprocess.Popen(
                words,
                env=os.environ | self._variables(index, port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _variables(self, index: int, port: int) -> Mapping[str, str]:
        variables = {VARIABLE: self.orders.to_text()}
        if self.devices is not None:
            flags = re.sub(rf"{_DEVICES}=\d+", "", os.environ.get("XLA_FLAGS", ""))
            variables["XLA_FLAGS"] = f"{flags} {_DEVICES}={self.devices // self.hosts}".strip()
            variables["JAX_PLATFORMS"] = "cpu"
        if self.hosts > 1:
            variables["LLMASOS_COORDINATOR"] = f"localhost:{port}"
            variables["LLMASOS_NUM_PROCESSES"] = str(self.hosts)
            variables["LLMASOS_PROCESS_INDEX"] = str(index)
        return variables


def read_batches(folder: Path) -> dict[int, dict[str, str]]:
    """Digests of the rows that a phase read, by step, from all of its processes.

    Two processes that read the same row have to have read the same: else its digest is "different".
    """
    found: dict[int, dict[str, str]] = {}
    for path in sorted(folder.glob("batches-*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            rows = found.setdefault(line["step"], {})
            for row, digest in line["rows"].items():
                rows[row] = digest if rows.get(row, digest) == digest else "different"
    return found


def _first_end(running: Sequence[subprocess.Popen]) -> int:
    """The status of the first process that does not end well; 0 when all have ended."""
    while True:
        statuses = [process.poll() for process in running]
        bad = [status for status in statuses if status]
        # The others of a killed process end by themselves with status 3: the kill is what counts.
        if bad:
            return min(bad)
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(_POLLED_EVERY_S)


def is_killed(status: int) -> bool:
    """Whether a process was ended by SIGKILL."""
    return status == -signal.SIGKILL


def _free_port() -> int:
    """One of which the next is free as well; a run's processes use both."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("localhost", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("localhost", port + 1))
            except (OSError, OverflowError):
                continue
            return port
