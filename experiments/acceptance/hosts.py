"""Two and four real processes on loopback: the losses of one process, and what ends them together.

Each case runs `llmasos train` in processes of their own. What they came to goes to `hosts.json`
beside this file: losses and weights beside those of one process with the same mesh, a checkpoint
that another number of processes goes on from, a stop that is not to be seen in the losses, and the
seconds from a signal to the end of the others:

    python experiments/acceptance/hosts.py                # all, some minutes
    python experiments/acceptance/hosts.py alike ends     # these parts, the others are kept
    python experiments/acceptance/hosts.py --more         # the cases that the file lacks
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import host_runs  # noqa: E402

from llmasos_jax.checkpoint.stored import StoredState  # noqa: E402

LONG = ("--config.train.steps=1000000", "--config.checkpoint.every_steps=10")
# Sizes that eight devices cut.
MODEL = {"num_heads": 8, "vocab_size": 264, "num_layers": 4, "ffn_dim": 64}
EXPERTS = {"experts.count": 4, "experts.per_token": 2, "experts.ffn_dim": 32}
# processes, devices of each, mesh, more of the model
ALIKE: list[tuple[int, int, dict[str, Any], dict[str, Any]]] = [
    (2, 1, {}, {}),
    (2, 2, {}, {}),
    (4, 1, {}, {}),
    (2, 2, {"tensor": 4}, {}),
    (2, 2, {"fsdp": "(4,)"}, {}),
    (2, 2, {"fsdp": "(2,2)"}, {}),
    (2, 2, {"fsdp": "(2,)", "tensor": 2}, {}),
    (2, 4, {"fsdp": "(2,)", "tensor": 4}, {}),
    (2, 4, {"fsdp": "(4,)", "tensor": 2}, {}),
    (2, 4, {"tensor": 8}, {}),
    (4, 1, {"fsdp": "(4,)"}, {}),
    (4, 1, {"tensor": 4}, {}),
    (4, 1, {"fsdp": "(2,)", "tensor": 2}, {}),
    (2, 2, {"expert": 4}, EXPERTS),
    (4, 1, {"expert": 4}, EXPERTS),
    (2, 2, {"context": 4}, {}),
    (4, 1, {"context": 4, "context_exchange": "ring"}, {}),
    (4, 1, {"expert": 2, "context": 2}, EXPERTS),
    (4, 1, {"pipeline": 4}, {}),
    (2, 2, {"pipeline": 2, "fsdp": "(2,)"}, {}),
]
# (processes, devices of each) that save, those that go on, mesh
RESUMED = [
    ((4, 1), (1, 4), {"fsdp": "(2,)", "tensor": 2}),
    ((1, 4), (4, 1), {"fsdp": "(2,)", "tensor": 2}),
    ((4, 1), (2, 1), {"fsdp": "(2,)"}),
    ((2, 1), (4, 1), {"fsdp": "(2,)"}),
    ((4, 1), (1, 1), {}),
]
STEPS = 40
# mesh, the process of four that gets SIGTERM
STOPPED = [({}, 2), ({"fsdp": "(2,)", "tensor": 2}, 0)]
# processes, the one that gets the signal
ENDS = [
    (2, 1, "SIGKILL"),
    (2, 0, "SIGKILL"),
    (2, 1, "SIGSTOP"),
    (2, 0, "SIGSTOP"),
    (4, 2, "SIGKILL"),
    (4, 0, "SIGKILL"),
    (4, 3, "SIGSTOP"),
    (4, 3, "SIGTERM"),
]


def options_of(mesh: dict[str, Any], model: dict[str, Any] | None = None) -> list[str]:
    """Of the command line."""
    sizes = {f"model.{k}": v for k, v in (MODEL | (model or {})).items()}
    sizes |= {f"mesh.{k}": v for k, v in mesh.items()}
    return [f"--config.{name}={value}" for name, value in sizes.items()]


def losses_apart(found: dict[int, float], expected: dict[int, float]) -> float:
    """The largest relative difference; not a number where the steps are not the same."""
    if not expected or found.keys() != expected.keys():
        return math.nan
    return max(abs(found[step] - expected[step]) / expected[step] for step in expected)


def params_apart(found: Path, expected: Path, step: int) -> float:
    """The largest difference of a leaf, relative to its norm; both are training folders."""
    one, other = StoredState(found, step), StoredState(expected, step)
    names = [name for name in other.leaves if name.startswith("params/")]
    if not names or any(name not in one.leaves for name in names):
        return math.nan

    def apart(name: str) -> float:
        a, b = one.read(name).astype(np.float64), other.read(name).astype(np.float64)
        return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))

    return max(map(apart, names))


def alike(
    folder: Path, processes: int, devices: int, mesh: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any]:
    """Losses and weights of several processes beside those of one with as many devices."""
    options = options_of(mesh, model)
    several = host_runs.Run(folder, processes, devices, "several", options, quick=True)
    statuses = several.wait()
    one = host_runs.Run(folder, 1, processes * devices, "one", options, quick=True)
    statuses += one.wait()
    row = {
        "processes": processes,
        "devices_each": devices,
        "mesh": mesh,
        "experts": model.get("experts.count", 0),
        "statuses": statuses,
        "steps": len(several.losses()),
        "largest_relative_difference": losses_apart(several.losses(), one.losses()),
    }
    if any(statuses):
        return row | {"said": several.errors(0) + one.errors(0)}
    return row | {"weights_after_3_steps": params_apart(several.workdir, one.workdir, 3)}


def resumed(
    folder: Path, saved: Sequence[int], goes_on: Sequence[int], mesh: dict[str, Any]
) -> dict[str, Any]:
    """Losses after a checkpoint that another number of processes has written."""
    options = options_of(mesh)
    first = host_runs.Run(folder, *saved, workdir="first", options=options, quick=True)
    statuses = first.wait()
    if any(statuses):
        return {"mesh": mesh, "statuses": statuses, "said": first.errors(0)}
    straight = first.losses()
    six, result = first.workdir / "checkpoints" / "6", first.workdir / "result.json"
    shutil.move(six, folder / "six")
    result.unlink()
    second = host_runs.Run(folder, *goes_on, workdir="first", options=options, quick=True)
    statuses += second.wait()
    shutil.rmtree(folder / "six")
    return {
        "saved_by": "{} x {}".format(*saved),
        "goes_on": "{} x {}".format(*goes_on),
        "mesh": mesh,
        "statuses": statuses,
        "has_gone_on_from": 3 if "step 3" in second.log(0) else None,
        "largest_relative_difference": losses_apart(second.losses(), straight),
    }


def stopped(folder: Path, mesh: dict[str, Any], index: int) -> dict[str, Any]:
    """A run of four that was stopped and went on, beside one that never was: bit for bit."""
    steps = [f"--config.{name}={STEPS}" for name in ("train.steps", "checkpoint.every_steps")]
    options = [*options_of(mesh), *steps]
    straight = host_runs.Run(folder, 4, 1, "straight", options, quick=True)
    statuses = [straight.wait()]
    run = host_runs.Run(folder, 4, 1, "stopped", options, quick=True)
    run.wait_for_step(STEPS // 5)
    run.send(index, signal.SIGTERM)
    statuses.append(run.wait())
    said = [run.log(number).splitlines()[-1] for number in range(4)]
    saved = {line.partition("saved at ")[2].partition(";")[0] for line in said}
    again = host_runs.Run(folder, 4, 1, "stopped", options, quick=True)
    statuses.append(again.wait())
    return {
        "mesh": mesh,
        "SIGTERM to": index,
        "statuses": statuses,
        "saved_at": sorted(saved),
        "steps": len(again.losses()),
        "same_losses": again.losses() == straight.losses(),
        "weights_apart": params_apart(again.workdir, straight.workdir, STEPS),
    }


def ends(folder: Path, processes: int, index: int, name: str) -> dict[str, Any]:
    """What the others do when one gets a signal, and after how long."""
    number = signal.Signals[name]
    run = host_runs.Run(folder, processes, 1, "ends", LONG)
    run.wait_for_step(12)
    start_s = time.monotonic()
    run.send(index, number)
    statuses = run.wait(without=None if name == "SIGTERM" else index)
    seconds = time.monotonic() - start_s
    other = 1 if index == 0 else 0
    said = [line for line in run.log(other).splitlines() if line.startswith("llmasos: ")][-1]
    return {
        "processes": processes,
        "signal": name,
        "to": index,
        "heartbeat_timeout_s": 4,
        "seconds": round(seconds, 2),
        "statuses": statuses,
        "said": said.replace(str(folder), "DIR"),
    }


PARTS: dict[str, tuple[Callable[..., dict[str, Any]], Sequence[tuple]]] = {
    "alike": (alike, ALIKE),
    "resumed": (resumed, RESUMED),
    "stopped": (stopped, STOPPED),
    "ends": (ends, ENDS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=HERE / "hosts.json")
    parser.add_argument("--more", action="store_true", help="only the cases that the file lacks")
    args = parser.parse_args()
    parts = args.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)}")
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    done = {part: result.get(part, []) if args.more else [] for part in parts}
    result |= {"jax": version("jax")} | done
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        host_runs.prepare(folder)
        for part in parts:
            measure, cases = PARTS[part]
            for case in cases[len(done[part]) :]:
                row = measure(folder, *case)
                for workdir in ("several", "one", "first", "straight", "stopped", "ends"):
                    shutil.rmtree(folder / workdir, ignore_errors=True)
                result[part].append(row)
                print(json.dumps(row), flush=True)
                args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
