"""Jobs on a Slurm cluster, submitted by submitit."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging.config
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.errors import ConfigError, MissingExtraError, PreemptedError, did_you_mean
from llmasos_jax.launch.options import slurm_seconds
from llmasos_jax.sweep.executors.executor import Ended, Job
from llmasos_jax.sweep.executors.remote import MANY, RemoteJob, stop_file
from llmasos_jax.sweep.places import Places, read_json, write_json

# Of sbatch, by submitit's names.
_NUMBERS = ("cpus_per_task", "gpus_per_node", "signal_delay_s")
_TEXTS = ("account", "constraint", "exclude", "gres", "nodelist", "partition", "qos", "setup")
_NAMES = ("time", *_TEXTS, *_NUMBERS)
_JOB = "slurm.json"
_ASKED_EVERY_S = 5.0
# States in which a job waits, runs, or is about to do either again.
_OPEN = "PENDING RUNNING SUSPENDED COMPLETING CONFIGURING REQUEUED REQUEUE_HOLD RESIZING STAGE_OUT"
_OPEN_STATES = (*_OPEN.split(), "PREEMPTED", "SIGNALING", "SPECIAL_EXIT", "STOPPED")
# Files may come to this machine a while after the job has ended on another.
_LATE_S = 30.0
# A job that goes back into the queue may be shown as failed for a moment.
_SETTLED_S = 10.0
# Between SIGTERM and SIGKILL, at most.
_GRACE_S = 1800.0


class SlurmExecutor:
    """Jobs of a Slurm cluster, of which every node sees the sweep's folder and this Python.

    A job whose time is over, or that is preempted, saves and goes back into the queue. A sweep that
    was itself killed takes its jobs up again.

    Args:
      options: `time` ("4:00:00", or minutes) of each job; and, as one likes, `partition`,
        `account`, `qos`, `constraint`, `gres`, `nodelist`, `exclude`, `cpus_per_task`,
        `gpus_per_node`, `signal_delay_s` (seconds before the end at which a job saves; 90) and
        `setup`, a shell command that comes first.
      jobs: queued or running at once.
      memory_gib: of each job; None leaves it to the partition.

    Raises:
      ConfigError: an option is unknown, lacks or does not fit, or Slurm is not here.
      MissingExtraError: submitit is not installed.

    References:
      github.com/facebookincubator/submitit
    """

    def __init__(
        self, options: Mapping[str, str], jobs: int = MANY, memory_gib: float | None = None
    ) -> None:
        submitit = _submitit()
        self.at_once, self._memory_gib = jobs, memory_gib
        self._parameters = _parsed(options)
        if memory_gib is not None:
            self._parameters["mem"] = f"{round(memory_gib * 1024)}MB"
        if submitit.SlurmExecutor.affinity() < 0:
            raise ConfigError(
                "--executor=slurm: srun is not on this machine; start on a login node"
            )

    def start(self, places: Places, group: str) -> Job:
        """See `Executor`; a job that was left running is taken up again."""
        submitit = _submitit()
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = places.group(group) / "slurm"
        known = open_job(places, group)
        if known is not None and not (folder / f"{known}_submitted.pkl").exists():
            # A sweep was killed before it had told the job what to do: it would fail in a minute.
            _answer(["scancel", known])
            known = None
        if known is not None:
            if stop_file(places, group).exists():
                raise ConfigError(
                    f"Slurm's job {known} was asked to stop and has not ended yet (squeue shows "
                    "it); start the sweep again when it has"
                )
            write_json(places.group(group) / _JOB, {"id": known})
            return _SlurmJob(submitit.SlurmJob(folder, known), places, group)
        stop_file(places, group).unlink(missing_ok=True)
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MANY)
        executor.update_parameters(**self._parameters, job_name=_name(places, group))
        try:
            job = _Requeued(str(places.root.absolute()), group, self._memory_gib)
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises too
                submitted = executor.submit(job)
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"sbatch did not take the job: {said}") from error
        write_json(places.group(group) / _JOB, {"id": submitted.job_id})
        return _SlurmJob(submitted, places, group)

    def close(self) -> None:
        """See `Executor`."""


class _Requeued(RemoteJob):
    """A job that Slurm may interrupt: it saves, and is called again."""

    def __call__(self) -> Ended:
        """Runs the job to its end, or until Slurm takes the machine away."""
        # Slurm's SIGTERM goes to all processes of a job.
        signal.signal(signal.SIGTERM, lambda *_: self.ask(is_told=True))
        ended = super().__call__()
        is_wanted = not stop_file(Places(Path(self.root)), self.group).exists()
        if self.is_asked and is_wanted and ended.status != 0:
            # Slurm is about to end this process; a job that has ended by itself is not requeued.
            time.sleep(_GRACE_S)
        return ended

    def checkpoint(self) -> Any:
        """Called by submitit before the job's time is over, or when it is preempted."""
        import submitit

        self.ask()
        self.wait()
        return submitit.helpers.DelayedSubmission(_Requeued(self.root, self.group, self.memory_gib))


class _SlurmJob:
    def __init__(self, job: Any, places: Places, group: str) -> None:
        self._job, self._places, self._group = job, places, group
        self._asked_s = self._closed_s = 0.0
        self._is_stopping = False

    def poll(self) -> Ended | None:
        """See `Job`."""
        if self._job.paths.result_pickle.exists():
            return self._result()
        now_s = time.monotonic()
        if now_s - self._asked_s < _ASKED_EVERY_S:
            return None
        self._asked_s = now_s
        state = _state_of(self._job.job_id)
        if state in _OPEN_STATES or (state == "UNKNOWN" and not _answers()):
            self._closed_s = 0.0
            return None
        self._closed_s = self._closed_s or now_s
        if state == "CANCELLED" and self._is_stopping:
            return Ended(PreemptedError.exit_status)
        is_late = state in ("COMPLETED", "UNKNOWN")
        if now_s - self._closed_s < (_LATE_S if is_late else _SETTLED_S):
            return None
        where = self._job.paths.stderr.parent.relative_to(self._places.root)
        return Ended(1, f"Slurm's job {self._job.job_id} is {state}; what it said is in {where}")

    def stop(self) -> None:
        """See `Job`."""
        self._is_stopping = True
        stop_file(self._places, self._group).touch()
        if _state_of(self._job.job_id) == "PENDING":
            self._job.cancel(check=False)
            self._asked_s = 0.0

    def _result(self) -> Ended:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return self._job.result()
        except (FailedJobError, UncompletedJobError) as error:
            return Ended(1, str(error).strip().splitlines()[-1])


def open_job(places: Places, group: str) -> str | None:
    """The number of a group's job that waits or runs, whoever submitted it; None if there is none.

    Raises:
      ConfigError: there was one, and Slurm does not say what has become of it.
    """
    if not (places.group(group) / "slurm").is_dir():
        return None  # nobody submitted one, and Slurm may be slow to answer
    # By name first: a sweep may have been killed before it could note the number.
    words = ["squeue", "--noheader", f"--name={_name(places, group)}", "--format=%i"]
    # Slurm shows a job for a moment after it has given its result.
    if left := [number for number in _answer(words).split() if not _is_over(places, group, number)]:
        return left[-1]
    found = (read_json(places.group(group) / _JOB) or {}).get("id")
    if found is None or _is_over(places, group, found):
        return None
    state = _state_of(found)
    if state == "UNKNOWN" and not _answers():
        raise ConfigError(
            f"Slurm does not answer, and its job {found} may still train points of this sweep; "
            f"start again when squeue works, or, if it is over, remove {places.group(group) / _JOB}"
        )
    return found if state in _OPEN_STATES else None


def _is_over(places: Places, group: str, number: str) -> bool:
    return (places.group(group) / "slurm" / f"{number}_0_result.pkl").exists()


def check_left(places: Places, ours: Collection[str]) -> None:
    """Refuses to train points that Slurm's jobs of an earlier call still train, or wait to.

    Args:
      places: of the sweep.
      ours: groups whose jobs will be taken up again.

    Raises:
      ConfigError: there is such a job; the message has its number.
    """
    for folder in sorted(places.root.glob("groups/*")):
        number = None if folder.name in ours else open_job(places, folder.name)
        if number is not None:
            raise ConfigError(
                f"Slurm's job {number} of an earlier call still has points of this sweep; start "
                f"with the same --executor=slurm and points, or end it first: scancel {number}"
            )


def _name(places: Places, group: str) -> str:
    """Of a group's job in Slurm, the same for every call."""
    where = hashlib.sha256(str(places.root.resolve()).encode()).hexdigest()[:8]
    return f"llmasos-{where}-{group}"


def _state_of(number: str) -> str:
    """As scontrol knows it; as accounting does, once that has forgotten it; else UNKNOWN."""
    for words in (
        ["scontrol", "show", "job", "--oneliner", number],
        ["sacct", f"--jobs={number}", "--allocations", "--noheader", "--format=State"],
    ):
        said = _answer(words).split()
        if words[0] == "scontrol":
            said = [w.removeprefix("JobState=") for w in said if w.startswith("JobState=")]
        if said:
            return said[0].rstrip("+")
    return "UNKNOWN"


def _answers() -> bool:
    """Whether Slurm's controller is there."""
    return bool(_answer(["sinfo", "--noheader"]))


def _answer(words: Sequence[str]) -> str:
    """What a client of Slurm prints; nothing where it fails or is not here."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _submitit() -> Any:
    """The package, imported such that it leaves the loggers of others alone."""
    # It configures logging when it is imported, and logging then closes what all handlers write to:
    # with absl's, the standard error of a notebook's earlier cell.
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError(
            "--executor=slurm needs submitit; install it with: pip install 'llmasos-jax[sweep]'"
        ) from error
    finally:
        logging.config.dictConfig = configure
    return submitit


def _parsed(options: Mapping[str, str]) -> dict[str, Any]:
    """Options as submitit takes them."""
    unknown = next((name for name in options if name not in _NAMES), None)
    if unknown is not None:
        raise ConfigError(
            f"--executor=slurm has no option {unknown}{did_you_mean(unknown, _NAMES)}"
        )
    seconds = slurm_seconds(options.get("time", ""))
    if seconds is None:
        raise ConfigError(
            f"--executor=slurm needs the time of each job, and time={options.get('time')}; give "
            "--executor-option time=4:00:00"
        )
    parsed: dict[str, Any] = {**options, "time": max(1, -(-seconds // 60))}
    for name in _NUMBERS:
        if name in options:
            if not options[name].isdecimal():
                raise ConfigError(f"--executor-option {name}={options[name]} is not a whole number")
            parsed[name] = int(options[name])
    if "setup" in options:
        parsed["setup"] = [options["setup"]]
    return parsed
