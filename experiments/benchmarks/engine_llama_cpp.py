"""llama.cpp, through the package xllamacpp, on a GGUF file. A worker of engine_vs_peers.py.

    python engine_llama_cpp.py FILE

The same protocol; two threads, greedy, ends of text ignored, no prompt kept. Each number of texts
has a server of its own, which wants to know how many there may be.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from typing import Any

import xllamacpp as module

xllamacpp: Any = module  # its names are made when it is loaded

VOCAB = 49152
_COMPLETIONS: dict[str, Any] = {
    "ignore_eos": True,
    "cache_prompt": False,
    "temperature": 0.0,
    "top_k": 1,
    "return_tokens": True,
}


def server(path: str, batch: int, tokens: int) -> Any:
    """A server for so many texts of so many tokens."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = batch, batch * (tokens + 64)
    params.n_batch, params.n_ubatch, params.n_gpu_layers = 2048, 512, 0
    threads = os.cpu_count() or 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_prompt, params.cache_ram_mib, params.fit_params = False, 0, False
    return xllamacpp.Server(params)


def main() -> None:
    """Answers until standard input ends."""
    rng = random.Random(0)
    held: tuple[tuple[int, int], Any] | None = None
    for line in sys.stdin:
        batch, prompt, new = map(int, line.split())
        if held is None or held[0][0] != batch or held[0][1] < prompt + new:
            held = None  # the old one goes before the new one comes
            held = ((batch, prompt + new), server(sys.argv[1], batch, prompt + new))
        engine = held[1]

        def seconds(num: int, batch: int = batch, prompt: int = prompt, engine=engine) -> float:
            asks = [
                {
                    **_COMPLETIONS,
                    "prompt": [rng.randrange(2, VOCAB) for _ in range(prompt)],
                    "n_predict": num,
                }
                for _ in range(batch)
            ]
            answers: list[Any] = [None] * batch

            def ask(index: int) -> None:
                answers[index] = engine.handle_completions(asks[index])

            threads = [threading.Thread(target=ask, args=(index,)) for index in range(batch)]
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - start
            drawn = [answer["timings"]["predicted_n"] for answer in answers]
            if drawn != [num] * batch:
                raise SystemExit(f"texts ended early: {drawn} in place of {num}")
            return took

        prefill_s = seconds(1)
        whole_s = seconds(new + 1)
        print(json.dumps({"prefill_s": prefill_s, "decode_s": whole_s - prefill_s}), flush=True)


if __name__ == "__main__":
    main()
