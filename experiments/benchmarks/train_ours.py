"""Times this project's training step on the 135M shape, and where its time goes. One JSON line.

Run by train_vs_peers.py, or alone:

    python experiments/benchmarks/train_ours.py --dtype=float32 --batch=4 --seq=512 --parts
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

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, OptimConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import Trainer, make_trainer

SHAPE_135M = dict(
    vocab_size=49152,
    embedding_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    ffn_dim=1536,
    rope_theta=100000.0,
    context_length=8192,
)


def no_attention(q_btnh, k_bskh, v_bskh, visible, **options):
    """Stands in for attention when its share of the time is measured."""
    del visible, options
    return q_btnh + 0 * (k_bskh.sum() + v_bskh.sum())


def config(args: argparse.Namespace, **model: object) -> Config:
    """The run that is timed: AdamW, clipping, float32 weights."""
    return Config(
        model=ModelConfig(**{**SHAPE_135M, **model}),  # pyright: ignore[reportArgumentType]
        data=DataConfig(sequence_length=args.seq),
        optim=OptimConfig(learning_rate=3e-4),
        train=TrainConfig(batch_size=args.batch, remat=args.remat, steps=1000),
        precision=PrecisionConfig(args.dtype),
    )


def batch_of(args: argparse.Namespace) -> Batch:
    """Random tokens, one document a row."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SHAPE_135M["vocab_size"], (args.batch, args.seq + 1)).astype(np.int32)
    shape = (args.batch, args.seq)
    return Batch(
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        loss_weights=np.ones(shape, np.float32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(args.seq, dtype=np.int32), shape).copy(),
    )


def seconds(fn, *args, repeats: int) -> list[float]:
    """Seconds of each call after one that compiles."""
    jax.block_until_ready(fn(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        times.append(time.perf_counter() - start)
    return times


def parts(args: argparse.Namespace, trainer: Trainer, params, batch: Batch) -> dict[str, float]:
    """Seconds of the step's parts, by leaving parts out."""
    median = lambda fn, *xs: statistics.median(seconds(fn, *xs, repeats=2))
    key = jax.random.key(0)
    bare = make_trainer(config(args, attention=f"{__name__}:no_attention"), trainer.mesh)
    small = make_trainer(config(args, vocab_size=576), trainer.mesh)
    short = Batch(
        batch.tokens % 576,
        batch.targets % 576,
        *(batch.loss_weights, batch.segment_ids, batch.positions),
    )
    whole = median(jax.jit(trainer.loss_and_grad), params, batch, key)
    without_attention = median(jax.jit(bare.loss_and_grad), params, batch, key)
    without_vocabulary = median(jax.jit(small.loss_and_grad), small.init(key).params, short, key)
    return {
        "forward_s": median(trainer.evaluate, params, batch),
        "forward_and_backward_s": whole,
        "attention_s": whole - without_attention,
        "output_layer_and_loss_s": whole - without_vocabulary,
    }


def main() -> None:
    """Parses arguments, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--parts", action="store_true", help="also time parts of the step")
    args = parser.parse_args()
    cfg = config(args)
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, jax.devices()[:1]))
    state = trainer.init(jax.random.key(0))
    batch = trainer.put(batch_of(args))
    times, cpu_times = [], []
    for _ in range(args.steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        state, metrics = trainer.step(state, batch)
        loss = float(metrics.loss)
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    step_s = statistics.median(times[1:])
    row = dict(
        name="llmasos_jax",
        dtype=args.dtype,
        step_s=round(step_s, 3),
        step_cpu_s=round(statistics.median(cpu_times[1:]), 3),
        first_step_s=round(times[0], 2),
        tokens_per_s=round(args.batch * args.seq / step_s, 1),
        loss=loss,
        peak_rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        load=os.getloadavg()[0],
    )
    if args.parts:
        timed = parts(args, trainer, state.params, batch)
        timed["optimizer_s"] = step_s - timed["forward_and_backward_s"]
        row["parts"] = {name: round(value, 2) for name, value in timed.items()}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
