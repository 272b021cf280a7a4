"""The engine with SmolLM2-135M-Instruct in float32. A worker of engine_vs_peers.py.

For each line `BATCH PROMPT NEW` on standard input it prints one JSON line: seconds from the asking
to the first token of all texts, and from there to NEW more of each, greedy, no prompt like another;
and the memory's bandwidth, measured right before.
"""

from __future__ import annotations

import json
import random
import sys
import time

from llmasos_jax import load_model
from llmasos_jax.engine import Ask, Engine, EngineOptions
from llmasos_jax.engine.bench import bytes_a_token, memory_gb_s
from llmasos_jax.generate.sampling import Sampling

CONTEXT = 768


def main() -> None:
    """Answers until standard input ends."""
    model = load_model("smollm2-135m-instruct")
    # Texts go on for as long as they are asked to: what ends them is made unlikely.
    sampling = Sampling(temperature=0.0, logit_bias=tuple((i, -100.0) for i in model.eos_ids))
    sizes = (1, 8, 32)
    rng = random.Random(0)
    with Engine(model, EngineOptions(sizes, context=CONTEXT)) as engine:
        engine.warm_up()
        before = engine.stats().num_compiled
        for line in sys.stdin:
            batch, prompt, new = map(int, line.split())

            def seconds(num: int, batch: int = batch, prompt: int = prompt) -> float:
                asks = [
                    Ask(
                        tuple(rng.randrange(2, model.num_ids) for _ in range(prompt)),
                        num,
                        sampling,
                        batch_size=batch,
                    )
                    for _ in range(batch)
                ]
                start = time.perf_counter()
                tickets = [engine.submit(ask) for ask in asks]
                drawn = [sum(len(piece.ids) for piece in ticket) for ticket in tickets]
                if drawn != [num] * batch:
                    raise SystemExit(f"texts ended early: {drawn} in place of {num}")
                return time.perf_counter() - start

            memory = memory_gb_s()
            prefill_s = seconds(1)
            whole_s = seconds(new + 1)
            row = {
                "prefill_s": prefill_s,
                "decode_s": whole_s - prefill_s,
                "memory_gb_s": memory,
                "bytes_a_token": bytes_a_token(model.weights),
                "compiled_since_warm_up": engine.stats().num_compiled - before,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
