"""Training on a CPU: this project beside transformers + torch and MaxText, in turn, in one run.

The 135M LLaMA shape (SmolLM2), batch 4 x 512, AdamW, clipping at 1.0, float32 weights; bfloat16
means bfloat16 products. Machines are noisy, so each round runs every program once (those of `ONCE`
in the first round only) and ratios are taken inside the round: to this project in the same dtype,
and to the faster of its two.

    python experiments/benchmarks/train_vs_peers.py --rounds=3 \
        --torch-python=PYTHON_WITH_TORCH --maxtext-python=PYTHON_WITH_MAXTEXT

`pip install torch==2.13.0 transformers==5.23.0`; `pip install 'maxtext[tpu]==0.2.5'` on 3.12.
A peer whose interpreter is not given is left out; torch.compile needs a C++ compiler.
Writes train_vs_peers.json beside itself. `step_cpu_s` is of both cores together: it says more than
tokens/s where others use them too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
OURS = "llmasos_jax"
PROGRAMS = (
    ("ours", "float32"),
    ("ours", "bfloat16"),
    ("maxtext", "float32"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch.compile", "bfloat16"),
)
# In the first round only: slower than the same program in bfloat16, or two minutes to compile.
ONCE = (("torch", "float32"), ("torch.compile", "bfloat16"))
MAXTEXT_SHAPE = (
    "decoder_block=llama2 base_emb_dim=576 base_num_query_heads=9 base_num_kv_heads=3 head_dim=64 "
    "base_mlp_dim=1536 base_num_decoder_layers=30 vocab_size=49152 mlp_activations=[silu,linear] "
    "logits_via_embedding=true rope_max_timescale=100000"
)


def run_json(python: str, script: str, args: argparse.Namespace, dtype: str, *more: str) -> dict:
    """Runs one of the timing scripts beside this file and reads its JSON line."""
    sizes = [f"--batch={args.batch}", f"--seq={args.seq}", f"--steps={args.steps}"]
    command = [python, str(HERE / script), f"--dtype={dtype}", *sizes, *more]
    root = str(HERE.parent.parent)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_maxtext(python: str, args: argparse.Namespace, dtype: str) -> dict:
    """Runs MaxText's own trainer on synthetic data and reads its log."""
    find = "import importlib.util as u; print(u.find_spec('maxtext').submodule_search_locations[0])"
    folder = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True)
    base = Path(folder.stdout.strip().splitlines()[-1]) / "configs" / "base.yml"
    with tempfile.TemporaryDirectory() as out:
        command = [python, "-m", "maxtext.trainers.pre_train.train", str(base), "run_name=cpu"]
        command += [f"base_output_directory={out}", "hardware=cpu", f"steps={args.steps + 2}"]
        command += ["skip_jax_distributed_system=true", "dataset_type=synthetic", "jax_cache_dir="]
        command += ["enable_checkpointing=false", f"per_device_batch_size={args.batch}"]
        command += [f"max_target_length={args.seq}", f"dtype={dtype}", "weight_dtype=float32"]
        command += ["attention=dot_product", "remat_policy=minimal", "enable_tensorboard=false"]
        command += ["gradient_clipping_threshold=1.0", *MAXTEXT_SHAPE.split()]
        quiet = {"DECOUPLE_GCLOUD": "TRUE", "HF_HUB_OFFLINE": "1", "TPU_SKIP_MDS_QUERY": "1"}
        env = {**os.environ, "JAX_PLATFORMS": "cpu", **quiet}
        with open(Path(out) / "log", "w") as file:
            child = subprocess.Popen(command, stdout=file, stderr=file, env=env, cwd=out)
            usage = os.wait4(child.pid, 0)[2]
        log = (Path(out) / "log").read_text()
    times = [float(s) for s in re.findall(r"completed step: \d+, seconds: ([\d.]+)", log)]
    if not times:
        raise SystemExit(f"MaxText failed:\n{log[-2000:]}")
    step_s = statistics.median(times[2:] or times)
    return dict(
        name="MaxText",
        dtype=dtype,
        step_s=round(step_s, 3),
        tokens_per_s=round(args.batch * args.seq / step_s, 1),
        peak_rss_gb=round(usage.ru_maxrss / 2**20, 2),
        load=os.getloadavg()[0],
    )


def main() -> None:
    """Runs the rounds and prints the paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--programs", help="comma-separated program:dtype; default all")
    parser.add_argument("--torch-python")
    parser.add_argument("--maxtext-python")
    parser.add_argument("--parts", action="store_true", help="also time parts of our step")
    args = parser.parse_args()
    result: dict = {"args": {k: v for k, v in vars(args).items() if "python" not in k}, "rows": []}
    programs = PROGRAMS
    if args.programs:
        programs = tuple(tuple(item.split(":")) for item in args.programs.split(","))
    for number in range(args.rounds):
        now = [item for item in programs if not number or item not in ONCE]
        rows = [run(program, dtype, args, number) for program, dtype in now]
        rows = [row for row in rows if row is not None]
        with_ratios(rows)
        for row in rows:
            row["round"] = number
            print(json.dumps(row), flush=True)
        result["rows"] += rows
        # After each round: a run that is stopped half way leaves what it has.
        (HERE / "train_vs_peers.json").write_text(json.dumps(result, indent=1) + "\n")
    print_table(result["rows"])


def run(program: str, dtype: str, args: argparse.Namespace, number: int) -> dict | None:
    """One program's row; None where its interpreter is not given."""
    if program == "ours":
        more = ["--parts"] if args.parts and not number else []
        return run_json(sys.executable, "train_ours.py", args, dtype, *more)
    if program == "maxtext":
        return run_maxtext(args.maxtext_python, args, dtype) if args.maxtext_python else None
    if not args.torch_python:
        return None
    more = ["--compile"] if program == "torch.compile" else []
    return run_json(args.torch_python, "train_torch.py", args, dtype, *more)


def with_ratios(rows: list[dict]) -> None:
    """Adds how many times as fast this project is, in the row's dtype and in its better one."""
    ours = {row["dtype"]: row["tokens_per_s"] for row in rows if row["name"] == OURS}
    for row in rows:
        if row["dtype"] in ours:
            row["ratio"] = round(ours[row["dtype"]] / row["tokens_per_s"], 2)
        if ours:
            row["ratio_of_best"] = round(max(ours.values()) / row["tokens_per_s"], 2)


def print_table(all_rows: list[dict]) -> None:
    """Medians over the rounds, as a table of Markdown."""
    print(
        "\n| program | dtype | tokens/s | llmasos_jax in that dtype | its better dtype | peak GB |"
    )
    print("|---|---|---|---|---|---|")
    for name, dtype in dict.fromkeys((row["name"], row["dtype"]) for row in all_rows):
        rows = [r for r in all_rows if (r["name"], r["dtype"]) == (name, dtype)]
        cells = [f"{statistics.median(row['tokens_per_s'] for row in rows)}"]
        for key in ("ratio", "ratio_of_best"):
            found = [row[key] for row in rows if key in row]
            cells.append(f"{statistics.median(found):.2f} x" if found else "")
        cells.append(str(max(row["peak_rss_gb"] for row in rows)))
        print(f"| {name} | {dtype} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
