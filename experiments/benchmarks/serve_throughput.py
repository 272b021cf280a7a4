"""What sixteen clients of one server get together, beside one client alone.

A process of `llmasos serve` with SmolLM2-135M-Instruct (float32) answers streamed conversations
over HTTP: each client asks for the next as soon as it has one; no question is like another. One
client and sixteen take turns, three rounds of a minute each; tokens that come within it count.

    python experiments/benchmarks/serve_throughput.py

Writes serve_throughput.json beside itself. About seven minutes on two quiet cores, which clients
and server share.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import httpx2 as httpx

HERE = Path(__file__).parent
MODEL = "smollm2-135m-instruct"
CLIENTS = 16
NEW = 128
WORDS = "river stone lamp music glass winter garden engine paper signal coast number".split()


def question(rng: random.Random) -> str:
    """Of some fifty tokens."""
    return f"Write a long story about {', '.join(rng.choices(WORDS, k=16))} and a {rng.random()}."


def tokens_per_s(url: str, clients: int, seconds: float, seed: int) -> float:
    """Of all clients together."""
    end_s = time.monotonic() + seconds
    counts = [0] * clients
    faults: list[str] = []

    def run(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        try:
            while time.monotonic() < end_s:
                body = {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": question(rng)}],
                    "max_tokens": NEW,
                    "seed": rng.randrange(2**31),
                    "stream": True,
                    "logprobs": True,
                }
                with httpx.stream(
                    "POST", f"{url}/v1/chat/completions", json=body, timeout=600
                ) as lines:
                    for line in lines.iter_lines():
                        if time.monotonic() > end_s:
                            return
                        if line.startswith("data: {"):
                            counts[number] += drawn(json.loads(line[6:]))
        except Exception as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise SystemExit(f"{len(faults)} clients failed: {faults[0]}")
    return sum(counts) / seconds


def drawn(chunk: dict) -> int:
    """Tokens of one event."""
    return sum(len((c.get("logprobs") or {}).get("content") or ()) for c in chunk["choices"])


def main() -> None:
    """Starts the server, runs the rounds, stops it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    command = [sys.executable, "-m", "llmasos", "serve", MODEL, "--port=0", "--context=1024"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent.parent)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    try:
        url = address(server)
        for clients in (1, CLIENTS):
            tokens_per_s(url, clients, 3, seed=99)
        rows = []
        for number in range(args.rounds):
            row: dict = {"round": number}
            order = (1, CLIENTS) if number % 2 == 0 else (CLIENTS, 1)
            for clients in order:
                rate = tokens_per_s(url, clients, args.seconds, seed=number)
                row[f"tok_s_{clients}"] = round(rate, 1)
                time.sleep(3)  # texts that were left are ended
            row["ratio"] = round(row[f"tok_s_{CLIENTS}"] / row["tok_s_1"], 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    finally:
        server.terminate()
        server.wait()
    figures = {
        "args": vars(args),
        "clients": CLIENTS,
        "new_tokens": NEW,
        "ratio": statistics.median(row["ratio"] for row in rows),
        "asked": 3.0,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "jax": version("jax"),
        "rows": rows,
    }
    (HERE / "serve_throughput.json").write_text(json.dumps(figures, indent=1) + "\n")


def address(server: subprocess.Popen[str]) -> str:
    """Where the server listens, once it says so."""
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said += line
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return found[0]
    raise SystemExit(f"the server ended:\n{said}")


if __name__ == "__main__":
    main()
