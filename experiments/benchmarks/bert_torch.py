"""Times transformers + torch pre-training BERT-base: MLM at all places and NSP. One JSON line.

Run by bert_vs_torch.py, or alone in an environment with the extra `parity`:

    python experiments/benchmarks/bert_torch.py --dtype=float32 --dropout=0.0 --steps=4
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time

import torch
import transformers
from transformers import BertConfig, BertForPreTraining

MASK_ID = 103


def batch_of(args: argparse.Namespace, vocab_size: int) -> dict[str, torch.Tensor]:
    """Random pairs of sentences; 20 of 128 tokens are masked, the others have no label."""
    shape = (args.batch, args.seq)
    ids = torch.randint(1000, vocab_size, shape)
    is_masked = torch.zeros(shape, dtype=torch.bool)
    for row in is_masked:
        row[torch.randperm(args.seq)[: args.predictions]] = True
    types = (torch.arange(args.seq) >= args.seq // 2).long().expand(shape)
    return dict(
        input_ids=torch.where(is_masked, MASK_ID, ids),
        labels=torch.where(is_masked, ids, -100),
        token_type_ids=types,
        attention_mask=torch.ones(shape, dtype=torch.long),
        next_sentence_label=torch.arange(args.batch) % 2,
    )


def main() -> None:
    """Parses arguments, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--predictions", type=int, default=20)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=args.layers,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    batch = batch_of(args, config.vocab_size)
    times, busy = [], []
    for _ in range(args.steps + 1):
        start, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = float(loss.detach())
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - cpu)
    step_s = statistics.median(times[1:])
    row = dict(
        name="transformers + torch",
        dtype=args.dtype,
        dropout=args.dropout,
        output="all places",
        step_s=round(step_s, 3),
        step_cpu_s=round(statistics.median(busy[1:]), 3),
        first_step_s=round(times[0], 2),
        tokens_per_s=round(args.batch * args.seq / step_s, 1),
        loss=loss,
        attention=model.config._attn_implementation,
        threads=torch.get_num_threads(),
        peak_rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        load=os.getloadavg()[0],
        version=f"torch {torch.__version__}, transformers {transformers.__version__}",
    )
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
