"""Exports that are killed, or whose disk is full: `python killed_exports.py MODEL PLACE TARGET...`.

One process imports everything; each export runs in a fork of it. It writes PLACE/found.json: for
each one its exit status, what it said, what is in its place, and whether every file there has the
hash that the receipt names.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmasos_jax.cli.main import main
from llmasos_jax.evals.export import run
from llmasos_jax.evals.export.targets import TABLE
from llmasos_jax.format import folder as folders

LIMIT = 30_000  # bytes of a file: more than a config, less than the weights


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def first(action: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **options: Any) -> Any:
        action()
        return function(*args, **options)

    return both


def then(function: Callable[..., Any], action: Callable[..., None]) -> Callable[..., Any]:
    def both(*args: Any, **options: Any) -> Any:
        function(*args, **options)
        action()

    return both


def before_anything(to: str) -> None:
    TABLE[to].write = first(die, TABLE[to].write)


def among_tensors(to: str) -> None:
    real = TABLE[to].write

    def write(files: Any, out: Path, dtype: str | None, on_tensor: Any) -> Any:
        seen: list[str] = []

        def tick(name: str, size: int) -> None:
            seen.append(name)
            if len(seen) == 5:
                die()

        return real(files, out, dtype, tick)

    TABLE[to].write = write  # pyright: ignore[reportAttributeAccessIssue]


def before_the_receipt(to: str) -> None:
    run.write_receipt = die


def before_the_name(to: str) -> None:
    folders._put_in_place = die


def after_the_name(to: str) -> None:
    folders._put_in_place = then(folders._put_in_place, die)


def disk_full(to: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def nothing(to: str) -> None:
    return


CASES = [
    *(before_anything, among_tensors, before_the_receipt, before_the_name, after_the_name),
    *(disk_full, nothing),
]


def is_whole(out: Path) -> bool:
    receipt = out / "parity.json"
    if not receipt.is_file():
        return False
    files = json.loads(receipt.read_bytes())["files"]
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    return there == {*files, "parity.json"} and all(
        hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        for name, digest in files.items()
    )


def export(model: str, out: Path, to: str, case: Callable[[str], None]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            os.dup2(said.fileno(), 2)
            case(to)
            os._exit(main(["export", model, f"--to={to}", f"--out={out}", "--unproven"]))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        text = said.read().decode()
    beside = [p.name for p in out.parent.iterdir() if p != out]
    return {
        **{"status": status, "said": text, "there": out.exists(), "whole": is_whole(out)},
        "beside": beside,
    }


if __name__ == "__main__":
    model, place, *targets = sys.argv[1:]
    found = {
        to: {
            case.__name__: export(model, Path(place, to, "out", case.__name__), to, case)
            for case in CASES
        }
        for to in targets
    }
    Path(place, "found.json").write_text(json.dumps(found))
