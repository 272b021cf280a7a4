"""Shell scripts: XPK, Slurm, and TPU VMs over ssh."""

from __future__ import annotations

import base64
import shlex
import string

from llmasos_jax.errors import PreemptedError
from llmasos_jax.launch.machines import Slice
from llmasos_jax.launch.options import SAVE_S, LaunchOptions

_AGAIN = PreemptedError.exit_status

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
        "termination-grace-period-seconds": options.save_s or SAVE_S["xpk"],
        "command": inside,
    }
    quoted = (f"  --{key}={shlex.quote(str(value))}" for key, value in words.items())
    lines = " \\\n".join(quoted)
    return (
        f"{_HEAD}# llmasos train on {slices} x {made.accelerator_type} ({made.topology}).\n"
        f"# Its options are those of XPK 1.16, which starts the run again on status "
        f"{', '.join(map(str, again))},\n# 42 and 127 to 255 (a process that a signal killed).\n"
        f"# Every host has to see {options.workdir}: a bucket is mounted by\n"
        "# `xpk storage attach --auto-mount=true`.\n"
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
        # SIGTERM to the processes before the time is over.
        "signal": f"TERM@{options.save_s or SAVE_S['slurm']}",
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
    """Starts a run on all workers of a TPU VM over ssh, shows the first one's log, or stops it."""
    where = f"--project={shlex.quote(str(options.project))} --zone={shlex.quote(str(options.zone))}"
    ssh = f"gcloud compute tpus tpu-vm ssh {shlex.quote(str(options.tpu))} {where}"
    words = {
        "folder": f"llmasos-{name}",
        "config": _packed(config),
        "again": _AGAIN,
        "setup": f"  {options.setup} || return\n" if options.setup else "",
        "workdir": shlex.quote(str(options.workdir)),
    }
    return (
        f"{_HEAD}# llmasos train on the TPU VM {options.tpu} ({made.accelerator_type}, "
        f"{made.hosts} workers):\n"
        "#   bash launch.sh         starts it on all workers, then shows the log of the first\n"
        "#   bash launch.sh log     shows it once more (Ctrl-C leaves the run alone)\n"
        "#   bash launch.sh stop    lets it save and end; started again, it goes on from there\n"
        f"# Every worker has llmasos with the extra tpu, and sees {options.workdir}.\n"
        f"set -euo pipefail\n\nstart=$(cat <<'END'\n{_START.substitute(words)}END\n)\n"
        f"stop=$(cat <<'END'\n{_STOP.substitute(words)}END\n)\n"
        f"log='tail -n +1 -F ~/{words['folder']}/train.log'\n\n"
        'verb="${1:-start}"\ncase "$verb" in\n'
        f'  start) {ssh} --worker=all --command="$start" ;;\n'
        f'  stop) {ssh} --worker=all --command="$stop" ;;\n'
        "  log) ;;\n"
        '  *) echo "launch.sh knows start, log and stop, not $verb" >&2; exit 2 ;;\nesac\n'
        f'if [ "$verb" != stop ]; then\n  {ssh} --worker=0 --command="$log"\nfi\n'
    )


# On each worker. The lock is held as long as the run lives: a second start finds it. The loop is on
# each as well: all of them leave the run, and meet again.
_START = string.Template(
    """\
mkdir -p ~/$folder && cd ~/$folder || exit 1
exec 9>> ~/.llmasos-run
if ! flock -n 9; then
  echo "$$(hostname): a run is on this worker already ($$(cat ~/.llmasos-run)); look at it" \\
    "(launch.sh log) or end it first (launch.sh stop)" >&2
  exit 1
fi
echo $folder > ~/.llmasos-run
rm -f stop && touch train.log
echo $config | base64 -d > config.json
run() {
$setup  while true; do
    llmasos train --config=config.json --workdir=$workdir &
    echo $$! > pid
    wait $$!
    status=$$?
    [ $$status -eq $again ] && [ ! -e stop ] || break
    sleep 10
    [ ! -e stop ] || break
  done
}
( trap '' HUP; status=1; run; rm -f pid; echo "ended with status $$status" ) \\
  >> train.log 2>&1 < /dev/null &
"""
)
_STOP = string.Template(
    """\
if flock -n ~/.llmasos-run true || [ "$$(cat ~/.llmasos-run)" != $folder ]; then
  echo "$$(hostname): no run of $folder is on this worker" >&2
else
  cd ~/$folder && touch stop && kill -TERM "$$(cat pid)" 2> /dev/null || true
fi
"""
)


def _packed(config: str) -> str:
    """Text that no shell reads anything into."""
    return base64.b64encode(config.encode()).decode()


def _setup(options: LaunchOptions) -> str:
    return f"{options.setup} && " if options.setup else ""
