"""Times transformers + torch training on the 135M shape. One JSON line.

Run by train_vs_peers.py, or alone in an environment with the extra `parity`:

    python experiments/benchmarks/train_torch.py --dtype=float32 --batch=4 --seq=512 --steps=4
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time

import torch
from llama_135m_torch import llama_135m


def main() -> None:
    """Parses arguments, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="torch.compile, its C++ backend")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = llama_135m(use_cache=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    run = torch.compile(model) if args.compile else model
    ids = torch.randint(0, model.config.vocab_size, (args.batch, args.seq))
    times, cpu_times = [], []
    for _ in range(args.steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = float(loss.detach())
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    step_s = statistics.median(times[1:])
    row = dict(
        name="transformers + torch" + (".compile" if args.compile else ""),
        dtype=args.dtype,
        step_s=round(step_s, 3),
        step_cpu_s=round(statistics.median(cpu_times[1:]), 3),
        first_step_s=round(times[0], 2),
        tokens_per_s=round(args.batch * args.seq / step_s, 1),
        loss=loss,
        peak_rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        load=os.getloadavg()[0],
    )
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
