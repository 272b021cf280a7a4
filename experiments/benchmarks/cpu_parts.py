"""Parts of a training step on a CPU: one layer's attention, and the output layer with its loss.

The 135M shape, 4 x 512 tokens, value and gradients. Forms are timed in turn, five rounds, and the
median round counts; memory is that of the compiled program's temporaries. Writes cpu_parts.json
beside itself and prints it. A minute on 2 quiet cores.

    python experiments/benchmarks/cpu_parts.py
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.nn.blocked import blocked_attention
from llmasos_jax.nn.kernels import reference
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import training_runtime
from llmasos_jax.train.chunked import Chunks, chunked_cross_entropy
from llmasos_jax.train.losses import cross_entropy

OUT = Path(__file__).with_suffix(".json")
B, T, N, K, H, D, V = 4, 512, 9, 3, 64, 576, 49152


def timed(forms: dict[str, Callable], *arrays: jax.Array) -> dict[str, dict]:
    """Median milliseconds and temporary megabytes of each form's value and gradients."""
    compiled = {name: jax.jit(form).lower(*arrays).compile() for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(6):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            if number:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "ms": round(statistics.median(times[name]), 1),
            "temporaries_mb": round(program.memory_analysis().temp_size_in_bytes / 1e6),
        }
        for name, program in compiled.items()
    }


def attention() -> dict[str, dict]:
    """One layer's, by the reference and in blocks."""
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    q, k, v, above = (jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True))
    index, segments = jnp.arange(T, dtype=jnp.int32)[None], jnp.ones((B, T), jnp.int32)

    def both_ways(attend: Callable, q, k, v, above, segments):
        visible = Visibility(index, index, segments, segments)
        out, pull = jax.vjp(lambda *x: attend(*x, visible, scale=H**-0.5), q, k, v)
        return out, pull(above)

    forms = {"reference": reference}
    for block in (64, 128, 256):
        forms[f"blocks of {block}"] = partial(blocked_attention, block=block)
    narrow = partial(blocked_attention, block=128, dtype=jnp.bfloat16)
    forms["blocks of 128, bfloat16 products"] = narrow
    both = {name: partial(both_ways, attend) for name, attend in forms.items()}
    return timed(both, q, k, v, above, segments)


def output_layer(dtype: str) -> dict[str, dict]:
    """Scores over the vocabulary and their cross-entropy, at once and in chunks."""
    keys = jax.random.split(jax.random.key(1), 3)
    x, w = jax.random.normal(keys[0], (B, T, D)), 0.02 * jax.random.normal(keys[1], (V, D))
    targets, ones = jax.random.randint(keys[2], (B, T), 0, V), jnp.ones((B, T))
    runtime = training_runtime(PrecisionConfig(dtype), "cpu")

    def score(w: jax.Array, x: jax.Array) -> jax.Array:
        return runtime.dot("btd,vd->btv", x, w, out_dtype=jnp.float32)

    def at_once(w: jax.Array, x: jax.Array) -> jax.Array:
        return cross_entropy(score(w, x), targets, ones).nll_sum

    def in_chunks(chunks: Chunks, w: jax.Array, x: jax.Array) -> jax.Array:
        return chunked_cross_entropy(score, w, x, targets, ones, chunks)[0]

    forms = {"at once": at_once}
    forms |= {f"chunks of {size}": partial(in_chunks, Chunks(size)) for size in (64, 128, 256)}
    forms["chunks of 128, scored again"] = partial(in_chunks, Chunks(128, again=True))
    both = {name: jax.value_and_grad(form, argnums=(0, 1)) for name, form in forms.items()}
    return timed(both, w, x)


def main() -> None:
    found = {
        "attention": attention(),
        "output layer, float32": output_layer("float32"),
        "output layer, bfloat16": output_layer("bfloat16"),
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
