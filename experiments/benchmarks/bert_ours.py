"""Times this project's pre-training step of BERT-base: MLM and NSP. One JSON line.

Run by bert_vs_torch.py, or alone:

    python experiments/benchmarks/bert_ours.py --dtype=bfloat16 --dropout=0.1 --steps=4

`--output=all` sends every place through the output layer, as transformers does, in place of the
masked ones alone: the difference is what the gather saves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time

import jax
import numpy as np

from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.models.zoo import preset
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import make_trainer

MASK_ID = 103


def config(args: argparse.Namespace) -> Config:
    """The run that is timed: AdamW, clipping, float32 weights."""
    return Config(
        model=preset("bert-base-uncased").config.replace(num_layers=args.layers),
        data=DataConfig(sequence_length=args.seq),
        objective=ObjectiveConfig(name="mlm_nsp"),
        optim=OptimConfig(learning_rate=1e-4, weight_decay=0.01),
        train=TrainConfig(batch_size=args.batch, dropout_rate=args.dropout, steps=1000),
        precision=PrecisionConfig(args.dtype),
    )


def batch_of(args: argparse.Namespace, vocab_size: int) -> Batch:
    """Random pairs of sentences, 20 of 128 tokens masked."""
    rng = np.random.default_rng(0)
    shape = (args.batch, args.seq)
    ids = rng.integers(1000, vocab_size, shape).astype(np.int32)
    masked = [np.sort(rng.permutation(args.seq)[: args.predictions]) for _ in range(args.batch)]
    places = np.stack(masked).astype(np.int32)
    tokens = ids.copy()
    np.put_along_axis(tokens, places, MASK_ID, axis=1)
    targets, weights = np.take_along_axis(ids, places, axis=1), np.ones(places.shape, np.float32)
    if args.output == "all":
        weights = np.zeros(shape, np.float32)
        np.put_along_axis(weights, places, 1.0, axis=1)
        targets, places = ids, np.broadcast_to(np.arange(args.seq, dtype=np.int32), shape).copy()
    second = (np.arange(args.seq) >= args.seq // 2).astype(np.int32)
    return Batch(
        tokens=tokens,
        targets=targets,
        loss_weights=weights,
        segment_ids=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(args.seq, dtype=np.int32), shape).copy(),
        extra={
            "masked_positions": places,
            "token_types": np.broadcast_to(second, shape).copy(),
            "next_sentence": (np.arange(args.batch) % 2).astype(np.int32),
        },
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
    parser.add_argument("--output", default="masked", choices=["masked", "all"])
    args = parser.parse_args()
    cfg = config(args)
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, jax.devices()[:1]))
    state = trainer.init(jax.random.key(0))
    batch = trainer.put(batch_of(args, cfg.model.vocab_size))
    times, busy = [], []
    for _ in range(args.steps + 1):
        start, cpu = time.perf_counter(), time.process_time()
        state, metrics = trainer.step(state, batch)
        loss = float(metrics.loss)
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - cpu)
    step_s = statistics.median(times[1:])
    row = dict(
        name="llmasos_jax",
        dtype=args.dtype,
        dropout=args.dropout,
        output=f"{args.output} places",
        step_s=round(step_s, 3),
        step_cpu_s=round(statistics.median(busy[1:]), 3),
        first_step_s=round(times[0], 2),
        tokens_per_s=round(args.batch * args.seq / step_s, 1),
        loss=loss,
        threads=len(os.sched_getaffinity(0)),
        peak_rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        load=os.getloadavg()[0],
        version=f"jax {jax.__version__}",
    )
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
