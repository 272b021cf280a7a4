"""The engine on a CPU beside transformers + torch and llama.cpp, in turn, in one run.

SmolLM2-135M's shape, greedy, 512 tokens in, 128 out a text, 1, 8 and 32 texts at once. All programs
stay loaded and answer one after the other, so that the noise of a shared machine falls on all; each
round gives one ratio. All run in float32; llama.cpp's F16, Q8_0 and Q4_1 stand beside, at 1 and 8.
A prompt's speed is that of a request for one token; new tokens' time is that of a request for 129
less that, of other prompts.

    python experiments/benchmarks/engine_vs_peers.py

`pip install -e '.[parity,models]' torch==2.13.0` for the peers (torch, transformers, xllamacpp).
Writes engine_vs_peers.json beside itself. About 35 minutes on two quiet cores.
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
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from llmasos_jax.hub.open import open_model
from llmasos_jax.interop.gguf.write import write_gguf

HERE = Path(__file__).parent
MODEL = "smollm2-135m-instruct"
OURS = "llmasos_jax"
TORCH = "transformers + torch"
LLAMA = "llama.cpp"
BESIDE = ("F16", "Q8_0", "Q4_1")
ROUNDS = {1: 5, 8: 3, 32: 2}
# (what, texts at once, peer): how many times the peer's tokens a second.
ASKED = {
    ("decode", 1, TORCH): 2.5,
    ("decode", 8, TORCH): 1.8,
    ("decode", 32, TORCH): 1.0,
    ("decode", 1, LLAMA): 0.85,
    ("decode", 8, LLAMA): 1.0,
    ("prefill", 1, TORCH): 1.0,
}
ASKED_MEMORY = 0.6


class Worker:
    """A program that answers `BATCH PROMPT NEW` with a line of JSON."""

    def __init__(self, name: str, script: str, *arguments: str) -> None:
        self.name = name
        root = str(HERE.parent.parent)
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
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
        prefill_s, decode_s = row.pop("prefill_s"), row.pop("decode_s")
        return dict(
            name=self.name,
            batch=batch,
            prefill_tok_s=round(batch * prompt / prefill_s, 1),
            decode_tok_s=round(batch * new / decode_s, 1),
            load=round(os.getloadavg()[0], 1),
            **row,
        )

    def close(self) -> None:
        """Lets the program end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def ask_all(workers: dict[str, Worker], args: argparse.Namespace) -> list[dict]:
    """Every measurement, with its round."""
    rows = []
    for batch, rounds in ROUNDS.items():
        present = [w for name, w in workers.items() if batch < 32 or name in (OURS, TORCH, LLAMA)]
        for worker in present:
            worker.ask(batch, 16, 2)
        for number in range(min(rounds, args.rounds)):
            # Each goes first in turn: the next one finds the machine warmer.
            turn = number % len(present)
            for worker in present[turn:] + present[:turn]:
                row = worker.ask(batch, args.prompt, args.new)
                rows.append({**row, "round": number})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Medians of the rounds; a ratio of ours to a peer is taken inside its round."""
    found: dict[tuple[str, int], dict[int, dict]] = defaultdict(dict)
    for row in rows:
        found[row["name"], row["batch"]][row["round"]] = row
    table = []
    for (name, batch), rounds in found.items():
        entry: dict = {"name": name, "batch": batch}
        for part in ("prefill", "decode"):
            key = f"{part}_tok_s"
            ours = found[OURS, batch]
            entry[key] = round(statistics.median(row[key] for row in rounds.values()), 1)
            ratios = [ours[number][key] / row[key] for number, row in rounds.items()]
            entry[f"ours_{part}_ratio"] = round(statistics.median(ratios), 2)
            asked = ASKED.get((part, batch, name))
            if asked is not None:
                entry[f"asked_{part}_ratio"] = asked
        if name == OURS and batch == 1:
            shares = [
                row["decode_tok_s"] * row["bytes_a_token"] / 1e9 / row["memory_gb_s"]
                for row in rounds.values()
            ]
            entry["memory_share"] = round(statistics.median(shares), 2)
            entry["asked_memory_share"] = ASKED_MEMORY
        table.append(entry)
    return table


def print_table(table: list[dict]) -> None:
    """In Markdown."""
    print("\n| program | texts | prompt tok/s | ours | new tok/s | ours |")
    print("|---|---|---|---|---|---|")
    for row in table:
        cells = [row["name"], row["batch"]]
        for part in ("prefill", "decode"):
            cells += [row[f"{part}_tok_s"], f"{row[f'ours_{part}_ratio']:.2f}x"]
        print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    """Writes the GGUF files, runs the rounds, prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=max(ROUNDS.values()))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, files, workers = Path(name), open_model(MODEL), {}
        workers[OURS] = Worker(OURS, "engine_ours.py")
        workers[TORCH] = Worker(TORCH, "engine_torch.py")
        for kind in ("F32", *BESIDE):
            write_gguf(files, folder, dtype=kind)
            path = next(folder.glob(f"*-{kind}.gguf"))
            peer = LLAMA if kind == "F32" else f"{LLAMA} {kind}"
            workers[peer] = Worker(peer, "engine_llama_cpp.py", str(path))
        rows = ask_all(workers, args)
        for worker in workers.values():
            worker.close()
    table = summary(rows)
    result = {
        "args": vars(args),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            package: version(package) for package in ("jax", "torch", "transformers", "xllamacpp")
        },
        "summary": table,
        "rows": rows,
    }
    (HERE / "engine_vs_peers.json").write_text(json.dumps(result, indent=1) + "\n")
    print_table(table)


if __name__ == "__main__":
    main()
