"""Generation on a CPU: this project beside transformers + torch, in turn, in one run.

The 135M LLaMA shape (SmolLM2), float32, random weights, greedy, 512 tokens in, 128 out a text.
Both programs stay loaded and answer one after the other, so that the noise of a shared machine
falls on both; each round gives one ratio.

    python experiments/benchmarks/generate_vs_torch.py --rounds=5 --torch-python=PYTHON_WITH_TORCH

`pip install torch==2.13.0 transformers==5.23.0` for the peer. Writes generate_vs_torch.json beside
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
from pathlib import Path

HERE = Path(__file__).parent


class Worker:
    """A program that answers `BATCH PROMPT NEW` with a line of JSON."""

    def __init__(self, name: str, python: str, script: str) -> None:
        self.name = name
        root = str(HERE.parent.parent)
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [python, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def ask(self, batch: int, prompt: int, new: int) -> dict:
        """One measurement, as tokens per second over all texts."""
        if self.process.stdin is None or self.process.stdout is None:
            raise SystemExit(f"{self.name} has no pipes")
        self.process.stdin.write(f"{batch} {prompt} {new}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        row = json.loads(line)
        return dict(
            name=self.name,
            batch=batch,
            prefill_tok_s=round(batch * prompt / row["prefill_s"], 1),
            decode_tok_s=round(batch * new / row["decode_s"], 1),
            load=round(os.getloadavg()[0], 1),
        )

    def close(self) -> None:
        """Lets the program end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Runs the rounds and prints the paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--torch-python", required=True)
    args = parser.parse_args()
    sizes = (args.prompt, args.new)
    workers = [
        Worker("llmasos_jax", sys.executable, "generate_ours.py"),
        Worker("transformers + torch", args.torch_python, "generate_torch.py"),
    ]
    rows = []
    for batch in map(int, args.batches.split(",")):
        for worker in workers:
            worker.ask(batch, *sizes)
        for number in range(args.rounds):
            # Each goes first in turn: the second one finds the machine warmer.
            order = workers if number % 2 == 0 else workers[::-1]
            pair = {worker.name: worker.ask(batch, *sizes) for worker in order}
            peer = pair[workers[1].name]
            for row in pair.values():
                for part in ("prefill", "decode"):
                    ratio = row[f"{part}_tok_s"] / peer[f"{part}_tok_s"]
                    row[f"{part}_ratio"] = round(ratio, 2)
                row["round"] = number
                rows.append(row)
                print(json.dumps(row), flush=True)
    for worker in workers:
        worker.close()
    settings = {k: v for k, v in vars(args).items() if "python" not in k}
    result = {"args": settings, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    text = json.dumps({**result, "rows": rows}, indent=1)
    (HERE / "generate_vs_torch.json").write_text(text + "\n")
    print_table(rows)


def print_table(rows: list[dict]) -> None:
    """Medians of the rounds; a ratio is taken inside its round."""
    print("\n| program | batch | prefill tok/s | decode tok/s | prefill ratio | decode ratio |")
    print("|---|---|---|---|---|---|")
    for name, batch in dict.fromkeys((row["name"], row["batch"]) for row in rows):
        own = [row for row in rows if (row["name"], row["batch"]) == (name, batch)]
        median = lambda key, own=own: statistics.median(row[key] for row in own)
        speeds = f"{median('prefill_tok_s'):.1f} | {median('decode_tok_s'):.1f}"
        ratios = f"{median('prefill_ratio'):.2f} | {median('decode_ratio'):.2f}"
        print(f"| {name} | {batch} | {speeds} | {ratios} |")


if __name__ == "__main__":
    main()
