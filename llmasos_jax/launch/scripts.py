"""Shell scripts: XPK, Slurm, and TPU VMs over ssh."""

from __future__ import annotations

import base64
import shlex

from llmasos_jax.errors import PreemptedError
from llmasos_jax.launch.machines import Slice
from llmasos_jax.launch.options import LaunchOptions

_AGAIN = PreemptedError.exit_status
_SAVE_S = 600  # between SIGTERM and the end, for a step and a checkpoint

_HEAD = "#!/bin/bash\n"


def xpk(name: str, config: str, made: Slice, slices: int, options: LaunchOptions) -> str:
    """One `xpk workload create`; the config travels inside its command."""
    again = [_AGAIN, 3] if options.restart_lost else [_AGAIN]
    inside = (
        f"{_setup(options)}echo {_packed(config)} | base64 -d > /tmp/config.json && exec llmasos "
        f"train --config=/tmp/config.json --workdir={shlex.quote(str(options.workdir))}"
    )
    words = {
        "workload": name,
        "cluster": options.cluster,
        "project": options.project,
        "zone": options.zone,
        "tpu-type": made.accelerator_type,
        "num-slices": slices,
        "docker-image": options.image,
        "max-restarts": options.max_restarts,
        "restart-on-exit-codes": ",".join(map(str, again)),
        "termination-grace-period-seconds": _SAVE_S,
        "command": inside,
    }
    lines = " \\\n".join(f"  --{key}={shlex.quote(str(value))}" for key, value in words.items())
    return (
        f"{_HEAD}# llmasos train on {slices} x {made.accelerator_type} ({made.topology}).\n"
        f"# Every host has to see {options.workdir}: `xpk storage attach` mounts a bucket.\n"
        f"set -euo pipefail\n\nxpk workload create \\\n{lines}\n"
    )


def slurm(name: str, config_path: str, options: LaunchOptions) -> str:
    """A batch script: one process on each node, started again after status 75."""
    settings = {
        "job-name": name,
        "partition": options.partition,
        "account": options.account,
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": options.gpus_per_node,
        "time": options.time,
        # SIGTERM to the processes two minutes before the time is over.
        "signal": "TERM@120",
        "output": f"{name}-%j.log",
        "open-mode": "append",
    }
    rows = [f"#SBATCH --{key}={value}\n" for key, value in settings.items() if value is not None]
    test, why = f"status == {_AGAIN}", ""
    if options.restart_lost:
        # srun gives the highest status: above 128, that of the process that a signal killed.
        count = f"${{SLURM_RESTART_COUNT:-0}} < {options.max_restarts}"
        test = f"{test} || ((status == 3 || status > 128) && {count})"
        why = " A lost process: the same, in the first starts alone."
    setup = f"{options.setup}\n" if options.setup else ""
    return (
        f"{_HEAD}{''.join(rows)}#SBATCH --exclusive\n#SBATCH --requeue\n"
        f"# llmasos train on {options.nodes} nodes, one process on each:  sbatch train.sbatch\n"
        f"# All of them have to see {config_path} and {options.workdir}.\n"
        f"\n{setup}"
        "# A process that ends is noticed by the others, which end in good order: srun must not.\n"
        "srun --kill-on-bad-exit=0 --label llmasos train \\\n"
        f"  --config={shlex.quote(config_path)} \\\n"
        f"  --workdir={shlex.quote(str(options.workdir))}\n"
        "status=$?\n"
        f"# Stopped and saved: back into the queue, to go on from the newest checkpoint.{why}\n"
        f"if (( {test} )); then\n"
        '  scontrol requeue "$SLURM_JOB_ID"\n'
        "fi\n"
        "exit $status\n"
    )


def tpu_vm(name: str, config: str, made: Slice, options: LaunchOptions) -> str:
    """Starts a run on all workers of a TPU VM over ssh, and shows the log of the first."""
    workdir = shlex.quote(str(options.workdir))
    folder = f"llmasos-{name}"
    # The loop runs on each worker: all of them leave the run, and meet again.
    run = (
        f"{_setup(options)}"
        f"while true; do llmasos train --config=config.json --workdir={workdir}; status=$?; "
        f"[ $status -eq {_AGAIN} ] || break; sleep 10; done; echo ended with status $status"
    )
    remote = (
        f"mkdir -p ~/{folder} && cd ~/{folder} && echo {_packed(config)} | base64 -d > config.json "
        f"&& nohup bash -c {shlex.quote(run)} > train.log 2>&1 < /dev/null & sleep 1"
    )
    tail = f"tail -n +1 -F ~/{folder}/train.log"
    ssh = "gcloud compute tpus tpu-vm ssh"
    where = f"--project={shlex.quote(str(options.project))} --zone={shlex.quote(str(options.zone))}"
    target = shlex.quote(str(options.tpu))
    return (
        f"{_HEAD}# llmasos train on the TPU VM {options.tpu} ({made.accelerator_type}, "
        f"{made.hosts} workers).\n"
        f"# Every worker has llmasos with the extra tpu, and sees {options.workdir}.\n"
        f"set -euo pipefail\n\n"
        f"{ssh} {target} {where} --worker=all \\\n  --command={shlex.quote(remote)}\n\n"
        "# The run goes on when this is left with Ctrl-C.\n"
        f"{ssh} {target} {where} --worker=0 \\\n  --command={shlex.quote(tail)}\n"
    )


def _packed(config: str) -> str:
    """Text that no shell reads anything into."""
    return base64.b64encode(config.encode()).decode()


def _setup(options: LaunchOptions) -> str:
    return f"{options.setup} && " if options.setup else ""
