"""Times this project's generation on the 135M shape. A worker of generate_vs_torch.py.

For each line `BATCH PROMPT NEW` on standard input it prints one JSON line: seconds from the prompts
to the first token, and from there to NEW more tokens of each text, greedy, random weights.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.load import init_model
from llmasos_jax.generate.loop import Programs
from llmasos_jax.generate.sampling import Sampling
from llmasos_jax.generate.session import Request, Session

SHAPE_135M = ModelConfig(
    vocab_size=49152,
    embedding_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    ffn_dim=1536,
    rope_theta=100000.0,
    context_length=8192,
)


def main() -> None:
    """Answers until standard input ends."""
    weights = init_model(Manifest("shape", SHAPE_135M))._weights
    programs = Programs(weights.definition, weights.runtime, SHAPE_135M.vocab_size)
    session = Session(programs, weights.params, (), SHAPE_135M.context_length)
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        batch, prompt, new = map(int, line.split())
        prompts = rng.integers(2, SHAPE_135M.vocab_size, (batch, prompt)).tolist()
        requests = [Request(ids, new + 1, Sampling(temperature=0.0)) for ids in prompts]
        shape, before = session.shape_of(requests, deterministic=False), session.num_compiled
        start = time.perf_counter()
        run = session.start(requests)
        run.new_ids()
        first = time.perf_counter()
        run.advance(new)
        drawn = run.new_ids()
        end = time.perf_counter()
        if any(len(ids) != new for ids in drawn):
            raise SystemExit("a text ended early")
        row = dict(prefill_s=first - start, decode_s=end - first, cache=shape.slots)
        print(json.dumps({**row, "is_warm": session.num_compiled == before}), flush=True)


if __name__ == "__main__":
    main()
