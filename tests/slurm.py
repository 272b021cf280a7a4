"""A Slurm cluster of one node, this machine: the real daemons, in a folder of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
KillWait=5
RequeueExit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def lacking():
    """Why there can be no cluster here; None if there can."""
    if os.getuid():
        return "Slurm's daemons are started as root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"{', '.join(absent)} not installed (Debian's slurm-wlm)" if absent else None


@contextlib.contextmanager
def cluster(folder):
    """Runs the daemons; gives the variables that clients need."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    values = {"host": socket.gethostname(), "ports": _free_ports(2), "folder": folder}
    conf.write_text(_CONF.format(**values, cpus=os.cpu_count()))
    variables = {"SLURM_CONF": str(conf)}
    daemons = [_start(name, folder, variables) for name in ("slurmctld", "slurmd")]
    try:
        _wait_until_idle(folder, variables)
        yield variables
    finally:
        run("scancel", "--state=RUNNING,PENDING", "--user=root", variables=variables)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def run(*words, variables):
    """What a client of Slurm prints."""
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True)
    return done.stdout + done.stderr


def run_again_now(job, variables):
    """Starts a requeued job, which Slurm lets wait for two minutes."""
    end = time.monotonic() + 60
    while "JobState=PENDING" not in run("scontrol", "show", "job", job, variables=variables):
        assert time.monotonic() < end, f"job {job} was not requeued"
        time.sleep(0.1)
    time.sleep(3)  # the node starts no job in the second in which it was told to kill it
    run("scontrol", "update", f"JobId={job}", "StartTime=now", variables=variables)


def _start(name, folder, variables):
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [name, "-D"], env=os.environ | variables, stdout=log, stderr=log, cwd=folder
        )


def _wait_until_idle(folder, variables):
    end = time.monotonic() + 60
    while "idle" not in (said := run("sinfo", "-h", "-o", "%T", variables=variables)):
        if time.monotonic() > end:
            logs = "".join(path.read_text() for path in folder.glob("*.log"))
            raise RuntimeError(f"Slurm did not start: {said}\n{logs}")
        time.sleep(0.2)


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
