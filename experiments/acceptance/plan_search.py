"""Searches LLaMA-2 7B on v5e:16x16 in the peer's memory, and writes what it found beside this file.

`llmasos plan --search --memory=GIB` with the memory of MaxText's program
(experiments/benchmarks/tpu_vs_maxtext.json, from the same jax and libtpu); the aim is at most 0.9 x
its cycles. Then `best.py` is planned: it has to answer from the cache with the same figures. Needs
the extra `tpu` and Python 3.12; one to two minutes for each program on two cores, and the same call
again goes on from the cache.

    python experiments/acceptance/plan_search.py               # 8 programs at most
    python experiments/acceptance/plan_search.py --tries=16
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmasos_jax.config.build import differences, load_config

HERE = Path(__file__)
ROOT = HERE.parents[2]
PEER = ROOT / "experiments" / "benchmarks" / "tpu_vs_maxtext.json"
CONFIG, TOPOLOGY, CASE = "llama2_7b:v5e:16x16", "v5e:16x16", "7B, v5e:16x16, 4 x 2048 a chip"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE.with_suffix(".json"))
    args = parser.parse_args()
    peer = json.loads(PEER.read_text())[CASE]["peer"]
    here = {name: version(name) for name in ("jax", "libtpu")}
    theirs = {name: peer["versions"][name] for name in here}
    if here != theirs:
        print(f"note: the peer was compiled by {theirs}, this is by {here}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        limit = peer["peak_gib"]
        words = ["--search", f"--memory={limit}", f"--tries={args.tries}", f"--out={folder}"]
        found, seconds = plan(CONFIG, *words)
        if found["best"] is None:
            raise SystemExit("nothing that was compiled fits")
        again, again_s = plan(f"{folder}/best.py")
        best = load_config(f"{folder}/best.py")
    cycles, peak = found["best"]["work"]["cycles"], found["best"]["memory"]["peak"] / 2**30
    told = {
        "versions": here,
        "limit_gib": limit,
        "changes": differences(load_config(CONFIG), best),
        "gcycles": cycles / 1e9,
        "peak_gib": peak,
        "link_gb": sum(t["link_bytes"] for t in found["best"]["traffic"]) / 1e9,
        "host_gib": found["best"]["memory"]["host_temporary"] / 2**30,
        "kernels_run": sum(found["best"]["work"]["kernels"].values()),
        "cycles_of_the_peers": round(cycles / 1e9 / peer["gcycles"], 4),
        "holds": cycles / 1e9 <= 0.9 * peer["gcycles"] and peak <= limit,
        "search_s": round(seconds, 1),
        "search_compiled": found["compiled"],
        "best_again": {
            "from_cache": again["from_cache"],
            "same": all(again[part] == found["best"][part] for part in ("memory", "work")),
            "process_s": round(again_s, 1),
        },
        "ranked": found["ranked"],
        "out": found["out"],
        "is_complete": found["is_complete"],
    }
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({k: v for k, v in told.items() if k not in ("ranked", "out")}, indent=1))


def plan(config: str, *words: str) -> tuple[dict[str, Any], float]:
    """What `llmasos plan --json` says, and the seconds of the whole process."""
    command = [sys.executable, "-m", "llmasos_jax", "plan", f"--config={config}"]
    command += [f"--topology={TOPOLOGY}", "--json", *words]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    start = time.monotonic()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    if not done.stdout:
        raise SystemExit(f"llmasos plan ended with status {done.returncode}")
    return json.loads(done.stdout), time.monotonic() - start


if __name__ == "__main__":
    main()
