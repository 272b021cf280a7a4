"""Times transformers + torch on the 135M shape. A worker of engine_vs_peers.py, same protocol.

float32, `generate` with its dynamic cache (the fastest of its caches here), two threads.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from llama_135m_torch import llama_135m


def main() -> None:
    """Answers until standard input ends."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model: Any = llama_135m().eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    is_warm = False
    for line in sys.stdin:
        batch, prompt, new = map(int, line.split())
        ids = torch.randint(2, 49152, (batch, prompt))

        def seconds(num: int, ids: torch.Tensor = ids) -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=num,
                    min_new_tokens=num,
                    do_sample=False,
                )
            if out.shape[1] != ids.shape[1] + num:
                raise SystemExit("a text ended early")
            return time.perf_counter() - start

        prefill_s = seconds(1)
        whole_s = seconds(new + 1)
        row = dict(prefill_s=prefill_s, decode_s=whole_s - prefill_s, is_warm=is_warm)
        print(json.dumps(row), flush=True)
        is_warm = True


if __name__ == "__main__":
    main()
