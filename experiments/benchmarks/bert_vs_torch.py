"""Pre-training BERT-base on a CPU: this project beside transformers + torch eager, in one run.

Batch 8 x 128, MLM (20 masked tokens a row) and NSP, AdamW, clipping at 1.0, float32 weights;
bfloat16 means bfloat16 products (autocast). Hidden dropout 0 or 0.1, none in attention. torch has
labels at all places, its usual way; here only masked places go through the output layer, and
`all places` is this project without that gather. Machines are noisy: a round runs each program
once, in its own process, and ratios are taken inside a round.

    python experiments/benchmarks/bert_vs_torch.py --torch-python=PYTHON_WITH_TORCH

`pip install torch==2.13.0 transformers==5.23.0`. About ten minutes on 2 quiet cores; `--layers=2`
for a trial. Writes bert_vs_torch.json beside itself and prints a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OURS, TORCH = "llmasos_jax", "transformers + torch"
DTYPES, DROPOUTS = ("bfloat16", "float32"), (0.0, 0.1)
MASKED, ALL = "masked places", "all places"


def run_json(python: str, script: str, args: argparse.Namespace, *more: str) -> dict:
    """Runs one of the timing scripts beside this file and reads its JSON line."""
    command = [python, str(HERE / script), f"--steps={args.steps}", f"--layers={args.layers}"]
    root = str(HERE.parent.parent)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *more], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_round(args: argparse.Namespace, number: int) -> list[dict]:
    """Each program once, the two sides in turn; who begins changes from round to round."""
    rows = []
    for dtype, dropout in itertools.product(DTYPES, DROPOUTS):
        which = [f"--dtype={dtype}", f"--dropout={dropout}"]
        sides = [(sys.executable, "bert_ours.py"), (args.torch_python, "bert_torch.py")]
        for python, script in sides[:: -1 if number % 2 else 1]:
            rows.append({"round": number, **run_json(python, script, args, *which)})
            print(json.dumps(rows[-1]), flush=True)
    without_gather = ["--dtype=bfloat16", "--dropout=0.0", "--output=all"]
    rows.append(
        {"round": number, **run_json(sys.executable, "bert_ours.py", args, *without_gather)}
    )
    print(json.dumps(rows[-1]), flush=True)
    return rows


def speeds(rows: list[dict], name: str, output: str, dtype: str, dropout: float) -> list[float]:
    """Tokens per second of one program, a number for each round."""
    wanted = dict(name=name, output=output, dtype=dtype, dropout=dropout)
    return [r["tokens_per_s"] for r in rows if all(r[k] == v for k, v in wanted.items())]


def ratios(ours: list[float], theirs: list[float]) -> dict:
    """How many times as fast, round by round, and the median."""
    found = [round(a / b, 3) for a, b in zip(ours, theirs, strict=True)]
    return {"ratio": round(statistics.median(found), 3), "rounds": found}


def summary(rows: list[dict]) -> dict:
    """Ratios of tokens per second: of each dtype, of the better one of each side, of the gather."""
    result: dict = {}
    for dropout in DROPOUTS:
        ours = {d: speeds(rows, OURS, MASKED, d, dropout) for d in DTYPES}
        theirs = {d: speeds(rows, TORCH, ALL, d, dropout) for d in DTYPES}
        result[f"dropout {dropout}"] = {d: ratios(ours[d], theirs[d]) for d in DTYPES}
        best = [max(side.values(), key=statistics.median) for side in (ours, theirs)]
        result[f"dropout {dropout}"]["better dtype of each"] = ratios(*best)
    with_gather = speeds(rows, OURS, MASKED, "bfloat16", 0.0)
    result["gather"] = ratios(with_gather, speeds(rows, OURS, ALL, "bfloat16", 0.0))
    return result


def main() -> None:
    """Runs the rounds, writes the figures and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--torch-python", default=sys.executable)
    args = parser.parse_args()
    shape = dict(rounds=args.rounds, steps=args.steps, layers=args.layers, batch=8, seq=128)
    rows: list[dict] = []
    for number in range(args.rounds):
        rows += run_round(args, number)
        result = {"args": shape, "summary": summary(rows), "rows": rows}
        # After each round: a run that is stopped half way leaves what it has.
        (HERE / "bert_vs_torch.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n| program | output layer | dtype | dropout | tokens/s | step s | peak GB |")
    print("|---|---|---|---|---|---|---|")
    keys = ("name", "output", "dtype", "dropout")
    for which in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        same = [row for row in rows if tuple(row[key] for key in keys) == which]
        middle = [statistics.median(r[key] for r in same) for key in ("tokens_per_s", "step_s")]
        peak = max(row["peak_rss_gb"] for row in same)
        print("| " + " | ".join(map(str, (*which, *middle, peak))) + " |")
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
