"""Log-likelihood tasks on a CPU: this project beside lm-eval's transformers backend, in one run.

The 282 MMLU development questions that lm-eval ships, by letter (all choices are one token) and by
the choices' texts, on the same float32 weights. Both programs stay loaded and score the same
requests in turn, the first round warming both up; each further round gives one ratio. The peer runs
with the best of several batch sizes.

    python experiments/benchmarks/eval_vs_lm_eval.py SmolLM2-135M-Instruct.Q4_1.gguf --rounds=5

Needs the extras `harness` and `parity`, accelerate and peft. Writes eval_vs_lm_eval.json beside
itself.
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
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
THREADS = 2
TASKS = {
    "letters": ("{question}\n{options}\nAnswer:", "letters"),
    "texts": ("Question: {question}\nAnswer:", "choices"),
}


def requests(task: str, stride: int) -> tuple[list[Any], int]:
    """What lm-eval asks of a model, and of how many examples: every `stride`-th."""
    from llmasos_jax.evals.tasks.builtin import mmlu_dev

    text, choices = TASKS[task]
    rows = mmlu_dev()[::stride]
    asked = [
        SimpleNamespace(args=(text.format(**row), f" {choice}"))
        for row in rows
        for choice in row[choices]
    ]
    return asked, len(rows)


def serve(side: str, folder: str, stride: int) -> None:
    """Answers lines `TASK BATCH` with seconds and the sum of all log-likelihoods."""
    said, sys.stdout = sys.stdout, sys.stderr  # progress bars and notes of others
    if side == "ours":
        from llmasos_jax.evals.harness.model import LLMasOSLM

        model: Any = LLMasOSLM(folder)
    else:
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(THREADS)
        model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
    for line in sys.stdin:
        task, batch = line.split()
        asked, num = requests(task, stride)
        if side != "ours":
            model.batch_size_per_gpu = int(batch)
        start = time.perf_counter()
        found = model.loglikelihood(asked, disable_tqdm=True)
        seconds = time.perf_counter() - start
        row = {"seconds": seconds, "examples": num, "sum": sum(float(a) for a, _ in found)}
        print(json.dumps(row), file=said, flush=True)


class Worker:
    """One of the two programs."""

    def __init__(self, side: str, folder: Path, stride: int) -> None:
        words = [sys.executable, __file__, "--serve", side, str(folder), f"--stride={stride}"]
        root = str(HERE.parent.parent)
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.name = side

    def ask(self, task: str, batch: int = 1) -> dict[str, Any]:
        """One measurement."""
        if self.process.stdin is None or self.process.stdout is None:
            raise SystemExit(f"{self.name} has no pipes")
        self.process.stdin.write(f"{task} {batch}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        row = json.loads(line)
        speed = row["examples"] / row["seconds"]
        return {"name": self.name, "task": task, "batch": batch, "examples_s": speed, **row}

    def close(self) -> None:
        """Lets the program end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The rounds of both tasks."""
    ours, theirs = (Worker(side, folder, args.stride) for side in ("ours", "lm-eval"))
    found = {}
    for task in TASKS:
        first = ours.ask(task)  # compiles
        tried = [theirs.ask(task, int(batch)) for batch in args.batches.split(",")]
        batch = max(tried, key=lambda row: row["examples_s"])["batch"]
        if abs(first["sum"] / tried[0]["sum"] - 1) > 1e-4:
            raise SystemExit(f"{task}: the sums differ: {first['sum']}, {tried[0]['sum']}")
        rows = []
        for number in range(args.rounds):
            # Each goes first in turn: the second one finds the machine warmer.
            order = [(ours, 1), (theirs, batch)][:: 1 if number % 2 == 0 else -1]
            pair = {worker.name: worker.ask(task, size) for worker, size in order}
            ratio = pair["ours"]["examples_s"] / pair["lm-eval"]["examples_s"]
            rows.append({"round": number, "ratio": ratio, "load": os.getloadavg()[0], **pair})
            print(f"{task} round {number}: {ratio:.2f} x", flush=True)
        found[task] = {
            "peer_batch": batch,
            "first_seconds": first["seconds"],
            "ratio": statistics.median(row["ratio"] for row in rows),
            "rows": rows,
        }
    ours.close()
    theirs.close()
    return found


def main() -> None:
    """Runs the rounds and prints the paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="SmolLM2's .gguf, or its name in the library")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,4,8", help="that the peer may choose from")
    parser.add_argument("--stride", type=int, default=1, help="takes every STRIDE-th example")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve, args.stride)
        return
    import llmasos

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "hf"
        llmasos.export(args.model, "hf", folder, dtype="float32", unproven=True)
        found = measure(args, folder)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print({task: round(row["ratio"], 2) for task, row in found.items()})
    result = {"machine": machine, "rounds": args.rounds, "stride": args.stride, "tasks": found}
    (HERE / "eval_vs_lm_eval.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
