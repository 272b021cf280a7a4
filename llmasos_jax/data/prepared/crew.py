"""Who does the work: this process, or several.

Processes are programs of their own (`python -m llmasos_jax.data.prepared.worker`) that read tasks
from a pipe. So nothing of this process is forked or imported again, a notebook and a script without
`if __name__ == "__main__"` both do, and a worker ends when the process that started it does, also
by SIGKILL: its pipe closes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.prepared.work import Bench, Task
from llmasos_jax.errors import DataError

Do = Callable[[Sequence[Task], Callable[[int], None]], None]


@dataclass(frozen=True)
class BenchSpec:
    """What a worker makes its `Bench` of.

    Attributes:
      data, by_sentence, folder: as in `Bench`.
      cache: folder for tables of the source.
      source_key: that the source must have there too.
      tokenizer: its entry; the files are in `folder`.
      fingerprint: that the tokenizer must have there too.
      modules: this process's `sys.path`.
    """

    data: DataConfig
    by_sentence: bool
    folder: Path
    cache: Path
    source_key: str
    tokenizer: dict[str, Any]
    fingerprint: str
    modules: tuple[str, ...]


def alone(bench: Bench) -> Do:
    """Does tasks here, one after the other."""

    def do(tasks: Sequence[Task], advance: Callable[[int], None]) -> None:
        for task in tasks:
            task.run(bench, advance)

    return do


@contextlib.contextmanager
def crew(spec: BenchSpec, count: int) -> Iterator[Do]:
    """Does tasks in `count` processes."""
    environment = os.environ | {
        # Each process takes one core; its libraries must not take all of them.
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    # The path of this program may have been set here alone.
    environment["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    command = [sys.executable, "-m", "llmasos_jax.data.prepared.worker"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(count)
    ]
    try:
        for worker in workers:
            _send(worker, spec)
        yield lambda tasks, advance: _share(workers, tasks, advance)
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _share(
    workers: Sequence[subprocess.Popen[bytes]],
    tasks: Sequence[Task],
    advance: Callable[[int], None],
) -> None:
    """Gives each worker a task whenever it has none."""
    left: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        left.put(task)
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()

    def serve(worker: subprocess.Popen[bytes]) -> None:
        try:
            while not stopped.is_set():
                _send(worker, left.get_nowait())
                while (answer := _receive(worker)) is not None:
                    said.put(answer)
                    if isinstance(answer, BaseException):
                        return
        except queue.Empty:
            pass
        except BaseException as error:
            said.put(error)
        finally:
            said.put(None)

    threads = [threading.Thread(target=serve, args=(w,), daemon=True) for w in workers]
    for thread in threads:
        thread.start()
    open_threads = len(threads)
    try:
        while open_threads:
            answer = said.get()
            if answer is None:
                open_threads -= 1
            elif isinstance(answer, BaseException):
                raise answer
            else:
                advance(answer)
    finally:
        stopped.set()


def _send(worker: subprocess.Popen[bytes], message: Any) -> None:
    if worker.stdin is None:
        raise ValueError("a worker without a pipe")
    try:
        pickle.dump(message, worker.stdin)
        worker.stdin.flush()
    except BrokenPipeError as error:
        raise _died(worker) from error


def _receive(worker: subprocess.Popen[bytes]) -> Any:
    """What a worker says: so much is done, an error, or None for the end of a task."""
    if worker.stdout is None:
        raise ValueError("a worker without a pipe")
    try:
        return pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise _died(worker) from error


def _died(worker: subprocess.Popen[bytes]) -> DataError:
    status = worker.wait()
    why = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    memory = " (there may be too little memory: use fewer workers)" if status == -9 else ""
    return DataError(
        f"a process that prepares data {why}{memory}; the same command goes on where it stopped"
    )
