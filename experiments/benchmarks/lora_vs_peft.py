"""LoRA on a CPU: this project beside PEFT + transformers + torch, in turn, in one run.

The 135M LLaMA shape (SmolLM2), batch 4 x 512, rank 16 on all products of the blocks, AdamW,
clipping at 1.0; bfloat16 means bfloat16 products between float32. Random weights: speed does not
depend on them. Each round runs both programs, each in a process of its own; ratios are taken inside
the round.

    python experiments/benchmarks/lora_vs_peft.py --rounds=3

Needs the extra `parity`. Writes lora_vs_peft.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
RANK, ALPHA = 16, 32
DTYPES = ("float32", "bfloat16")


def ours(args: argparse.Namespace) -> Callable[[], float]:
    """One step of this project; gives the loss."""
    import dataclasses

    import jax
    import train_ours

    from llmasos_jax.config.finetune import FinetuneConfig
    from llmasos_jax.models.definition import init_params
    from llmasos_jax.parallel.mesh import make_mesh
    from llmasos_jax.train.pretrained import abstract_frozen
    from llmasos_jax.train.step import make_trainer
    from llmasos_jax.train.trained import is_trained, parted

    # What `base` names is not opened here.
    tuned = FinetuneConfig(base="random", rank=RANK, alpha=ALPHA)
    cfg = dataclasses.replace(train_ours.config(args), finetune=tuned)
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, jax.devices()[:1]))
    state = trainer.init(jax.random.key(0))
    kept = abstract_frozen(trainer)

    def draw(key: jax.Array) -> dict:
        frozen = parted(init_params(trainer.definition, key), is_trained(cfg))[1]
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), frozen, kept)

    frozen = jax.jit(draw)(jax.random.key(1))
    batch = trainer.put(train_ours.batch_of(args))

    def step() -> float:
        nonlocal state
        state, metrics = trainer.step(state, batch, frozen)
        return float(metrics.loss)

    return step


def theirs(args: argparse.Namespace) -> Callable[[], float]:
    """One step of PEFT's model; gives the loss."""
    import torch
    from llama_135m_torch import llama_135m
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(llama_135m(use_cache=False), lora).train()
    moved = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moved, lr=3e-4, weight_decay=0.1)
    ids = torch.randint(0, model.config.vocab_size, (args.batch, args.seq))

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


SIDES = {"llmasos_jax": ours, "peft": theirs}


def serve(args: argparse.Namespace) -> None:
    """Times one program; prints one JSON line."""
    step = SIDES[args.side](args)
    times, cpu_times, loss = [], [], 0.0
    for _ in range(args.steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = step()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    step_s = statistics.median(times[1:])
    row = {
        "name": args.side,
        "dtype": args.dtype,
        "step_s": round(step_s, 3),
        "step_cpu_s": round(statistics.median(cpu_times[1:]), 3),
        "first_step_s": round(times[0], 2),
        "tokens_per_s": round(args.batch * args.seq / step_s, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "loss": round(loss, 4),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    """Runs the rounds and prints the paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args)
        return
    rows, ratios = [], {}
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = str(HERE.parent.parent)
    for number in range(args.rounds):
        for dtype in [args.dtype] if args.dtype else DTYPES:
            pair = {}
            for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                words = [sys.executable, __file__, f"--side={side}", f"--dtype={dtype}"]
                words += [f"--{name}={getattr(args, name)}" for name in ("batch", "seq", "steps")]
                words += [f"--remat={args.remat}"]
                done = subprocess.run(words, capture_output=True, text=True, env=env)
                if done.returncode:
                    raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
                pair[side] = json.loads(done.stdout.splitlines()[-1])
                print(pair[side], flush=True)
            ratio = pair["llmasos_jax"]["tokens_per_s"] / pair["peft"]["tokens_per_s"]
            memory = pair["llmasos_jax"]["peak_rss_gb"] / pair["peft"]["peak_rss_gb"]
            ratios.setdefault(dtype, []).append(ratio)
            rows.append({"round": number, "dtype": dtype, "ratio": ratio, "memory": memory, **pair})
            print(f"{dtype} round {number}: {ratio:.2f} x, memory {memory:.2f} x", flush=True)
    medians = {dtype: round(statistics.median(found), 2) for dtype, found in ratios.items()}
    print(medians)
    text = json.dumps({"args": vars(args), "ratios": medians, "rows": rows}, indent=1)
    (HERE / "lora_vs_peft.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
