"""Pre-training BERT-base on a CPU: this project beside transformers + torch eager, in one run.

Batch 8 x 128, MLM (20 masked tokens a row) and NSP, AdamW, clipping at 1.0, float32 weights;
bfloat16 means bfloat16 products (autocast). Hidden dropout 0 or 0.1, none in attention. torch has
labels at all places, its usual way; here only masked places go through the output layer, and
`all places` is this project without that gather. Machines are noisy: a round runs each program
once, in its own process, and ratios are taken inside a round.

    python experiments/benchmarks/bert_vs_torch.py --torch-python=PYTHON_WITH_TORCH

`pip install torch==2.13.0 transformers==5.23.0`. Under 6 minutes on 2 quiet cores; `--layers=2` for
a trial. Writes bert_vs_torch.json beside itself and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OURS, TORCH = "llmasos_jax", "transformers + torch"
# dtype, dropout, output: every round; and what is enough to see once.
EACH_ROUND = [("bfloat16", 0.0, "masked"), ("bfloat16", 0.1, "masked")]
ONCE = [("float32", 0.0, "masked"), ("float32", 0.1, "masked"), ("bfloat16", 0.0, "all")]


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
    for dtype, dropout, output in EACH_ROUND + (ONCE if number == 0 else []):
        which = [f"--dtype={dtype}", f"--dropout={dropout}"]
        sides = [(sys.executable, "bert_ours.py", [*which, f"--output={output}"])]
        if output == "masked":
            sides.append((args.torch_python, "bert_torch.py", which))
        for python, script, more in sides[:: -1 if number % 2 else 1]:
            rows.append({"round": number, **run_json(python, script, args, *more)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def tokens_per_s(rows: list[dict], **wanted: object) -> float:
    """The median over the rounds of the rows that have these values."""
    found = [r["tokens_per_s"] for r in rows if all(r[k] == v for k, v in wanted.items())]
    return statistics.median(found)


def summary(rows: list[dict]) -> dict:
    """Ratios of tokens per second, medians over the rounds."""
    rounds = [[r for r in rows if r["round"] == n] for n in sorted({r["round"] for r in rows})]
    result: dict = {}
    for dropout in (0.0, 0.1):
        best = {}
        for name in (OURS, TORCH):
            which = dict(name=name, dropout=dropout)
            if name == OURS:
                which["output"] = "masked places"
            dtypes = sorted({r["dtype"] for r in rows})
            best[name] = max(dtypes, key=lambda d, w=which: tokens_per_s(rows, dtype=d, **w))
        ratios = []
        for some in rounds:
            have = {r["dtype"] for r in some}
            if have >= set(best.values()):
                which = dict(dtype=best[OURS], dropout=dropout, output="masked places")
                ours = tokens_per_s(some, name=OURS, **which)
                theirs = tokens_per_s(some, name=TORCH, dtype=best[TORCH], dropout=dropout)
                ratios.append(ours / theirs)
        result[f"dropout {dropout}"] = dict(
            better_dtypes=best,
            ratio=round(statistics.median(ratios), 3),
            ratios=[round(r, 3) for r in ratios],
        )
    first = dict(name=OURS, dtype="bfloat16", dropout=0.0)
    with_gather = tokens_per_s(rounds[0], output="masked places", **first)
    without = tokens_per_s(rounds[0], output="all places", **first)
    result["gather"] = dict(times_as_fast_as_without=round(with_gather / without, 3))
    return result


def main() -> None:
    """Runs the rounds, writes the figures and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
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
