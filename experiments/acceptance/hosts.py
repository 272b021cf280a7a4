"""Two and four real processes on loopback: the losses of one process, and what ends them together.

Each case runs `llmasos train` in processes of their own; seconds from the signal to the end of the
others go to `hosts.json` beside this file:

    python experiments/acceptance/hosts.py
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))

import host_runs  # noqa: E402

LONG = ("--config.train.steps=1000000", "--config.checkpoint.every_steps=10")
# processes, devices of each, mesh
ALIKE = [
    (2, 1, {}),
    (2, 2, {}),
    (4, 1, {}),
    (2, 1, {"tensor": 2}),
    (2, 2, {"fsdp": "(2,)", "tensor": 2}),
    (4, 1, {"fsdp": "(2,)", "tensor": 2}),
]
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


def alike(folder: Path, processes: int, devices: int, mesh: dict[str, Any]) -> dict[str, Any]:
    """Losses of several processes beside those of one with as many devices."""
    options = [f"--config.mesh.{name}={value}" for name, value in mesh.items()]
    name = f"{processes}x{devices}-{'-'.join(mesh) or 'data'}"
    several = host_runs.Run(folder, processes, devices, f"{name}-several", options)
    statuses = several.wait()
    one = host_runs.Run(folder, 1, processes * devices, f"{name}-one", options)
    statuses += one.wait()
    found, expected = several.losses(), one.losses()
    same = found.keys() == expected.keys() and len(found) == 6
    worst = max(abs(found[s] - expected[s]) / expected[s] for s in expected) if same else math.nan
    return {
        "processes": processes,
        "devices_each": devices,
        "mesh": mesh,
        "statuses": statuses,
        "steps": len(found),
        "largest_relative_difference": worst,
    }


def ends(folder: Path, processes: int, index: int, name: str) -> dict[str, Any]:
    """What the others do when one gets a signal, and after how long."""
    number = signal.Signals[name]
    run = host_runs.Run(folder, processes, 1, f"{processes}-{index}-{name}", LONG)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "hosts.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"jax": version("jax"), "alike": [], "ends": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        host_runs.prepare(folder)
        for case in ENDS:
            result["ends"].append(ends(folder, *case))
            print(json.dumps(result["ends"][-1]), flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
        for case in ALIKE:
            result["alike"].append(alike(folder, *case))
            print(json.dumps(result["alike"][-1]), flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
