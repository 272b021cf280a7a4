"""Real processes of one run on loopback, through the command that a user types."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from commands import environment

CONFIG = """
from llmasos_jax.config.build import default_config


def get_config(variant=""):
    c = default_config()
    c.name = "small"
    c.model.vocab_size = 259
    c.model.embedding_dim = 32
    c.model.num_layers = 2
    c.model.num_heads = 2
    c.model.context_length = 16
    c.data.source = "text"
    c.data.path = "{folder}/text"
    c.data.sequence_length = 16
    c.tokenizer.kind = "bytes"
    c.train.steps = 6
    c.train.batch_size = 8
    c.train.log_every_steps = 1
    c.train.eval_every_steps = None
    c.optim.warmup_steps = 2
    c.optim.learning_rate = 1e-2
    c.checkpoint.every_steps = 3
    return c
"""


def prepare(folder: Path) -> Path:
    """Writes the config and its text; returns the config's path."""
    (folder / "text").mkdir(parents=True)
    rng = random.Random(0)
    for number in range(12):
        words = [rng.choice(["def", "return", "x", "+", "1", "\n"]) for _ in range(300)]
        (folder / "text" / f"{number:02d}.txt").write_text(" ".join(words))
    path = folder / "small.py"
    path.write_text(CONFIG.format(folder=folder))
    return path


def free_port() -> int:
    """A port that is free, as is the next one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except OSError:
                continue


# What Slurm has: a job that is a script, and in it a step that is processes. They stand beside the
# script with their output.
_PROGRAMS = {
    "sbatch": "SLURM_JOB_ID=$JOB exec bash $1",
    "scontrol": 'echo "$@"',
    "llmasos": 'exec "$PYTHON" -m llmasos "$@"',
    "srun": """
while [[ $1 == --* ]]; do shift; done
worst=0
export SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=$TASKS
for (( i = 0; i < TASKS; i++ )); do
  SLURM_PROCID=$i "$@" $MORE > $i.out 2> $i.log &
  tasks+=($!)
done
for task in ${tasks[@]}; do
  wait $task
  status=$?
  (( status > worst )) && worst=$status
done
exit $worst""",
}


def slurm(script: Path, tasks: int, *more: str) -> subprocess.Popen[str]:
    """`sbatch SCRIPT` with programs in the place of Slurm's, which start processes here.

    Args:
      script: its folder is the one to run in, and gets `0.out`, `0.log` and so on.
      tasks: processes of each step.
      more: put behind the words of each process.
    """
    programs = script.parent / "bin"
    programs.mkdir()
    for name, text in _PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    variables = environment(script.parent.parent)
    variables |= {
        "PATH": f"{programs}:/bin:/usr/bin",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JOB": str(random.SystemRandom().randrange(1 << 20)),  # a port goes by it
        "TASKS": str(tasks),
        "MORE": " ".join(more),
        "PYTHON": sys.executable,
    }
    return subprocess.Popen(
        [programs / "sbatch", script],
        cwd=script.parent,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Run:
    """`llmasos train` in several processes.

    Args:
      folder: from `prepare`.
      count: processes.
      devices: fake CPU devices of each.
      workdir: name of the training folder in `folder`.
      options: more of the command line, for all.
      one: (process, options) of the command line for one.
      by_config: whether addresses are in the config; else in `LLMASOS_*` variables.
      quick: compiles fast and computes slowly.
    """

    def __init__(
        self,
        folder,
        count,
        devices=1,
        workdir="run",
        options=(),
        one=None,
        by_config=True,
        quick=False,
    ):
        self.workdir, self.count = folder / workdir, count
        port = free_port()
        self.logs = [folder / f"{workdir}-{count}-{index}.log" for index in range(count)]
        self.processes = []
        for index, log in enumerate(self.logs):
            variables = environment(folder)
            flags = [f"--xla_force_host_platform_device_count={devices}"]
            if quick:
                flags.append("--xla_backend_optimization_level=0")
            variables["XLA_FLAGS"] = " ".join(flags)
            hosts = []
            if count > 1 and by_config:
                hosts = [f"coordinator=127.0.0.1:{port}", f"count={count}", f"index={index}"]
            elif count > 1:
                variables["LLMASOS_COORDINATOR"] = f"127.0.0.1:{port}"
                variables["LLMASOS_NUM_PROCESSES"] = str(count)
                variables["LLMASOS_PROCESS_INDEX"] = str(index)
            words = [
                *("-m", "llmasos", "train", f"--config={folder}/small.py"),
                *(f"--workdir={self.workdir}", "--config.hosts.heartbeat_timeout_s=4"),
                *(f"--config.hosts.{text}" for text in hosts),
                *options,
                *(one[1] if one and one[0] == index else ()),
            ]
            with open(log, "w") as file, open(log.with_suffix(".out"), "w") as out:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *words],
                        cwd=folder,
                        env=variables,
                        stdout=out,
                        stderr=file,
                    )
                )

    def wait_for_step(self, step: int, timeout_s: float = 120) -> None:
        """Waits until a step is in the metrics."""
        until_s = time.monotonic() + timeout_s
        while not self.losses() or max(self.losses()) < step:
            assert time.monotonic() < until_s, self.log(0)
            assert self.processes[0].poll() is None, self.log(0)
            time.sleep(0.05)

    def send(self, index: int, number: signal.Signals) -> None:
        """Sends a signal to one process."""
        os.kill(self.processes[index].pid, number)

    def wait(self, *, without: int | None = None, timeout_s: float = 300) -> list[int]:
        """Waits for the ends of all (but one) and returns their exit statuses."""
        try:
            return [p.wait(timeout_s) for i, p in enumerate(self.processes) if i != without]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def log(self, index: int) -> str:
        """What a process has said."""
        return self.logs[index].read_text()

    def output(self, index: int) -> str:
        """What a process has written to standard output."""
        return self.logs[index].with_suffix(".out").read_text()

    def errors(self, index: int) -> list[str]:
        """The lines of an error that a process has said."""
        return [line for line in self.log(index).splitlines() if line.startswith("llmasos: error")]

    def losses(self) -> dict[int, float]:
        """The loss of each step so far."""
        try:
            text = (self.workdir / "metrics.jsonl").read_text()
        except OSError:
            return {}
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}
