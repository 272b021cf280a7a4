"""What weights in eight and four bits lose: `load_model(quantize=...)` beside float32.

    JAX_PLATFORMS=cpu python experiments/acceptance/quantized_perplexity.py

SmolLM2-135M-Instruct predicts a chapter of Python's own manual (`pydoc_data.topics`), cut into
windows of 512 tokens; of each window all tokens but the first are predicted from those before. Its
package ships most matrices in four bits already (Q4_1), so a second model stands beside it, whose
package has plain float32: MiniLM's embeddings of the begins of its sections, and how far they turn.
Bytes and tokens a second are those of `llmasos bench`: one text and eight.

Prints a row for each and writes quantized_perplexity.json beside this file. About six minutes on
two quiet cores.
"""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmasos_jax import load_model
from llmasos_jax.engine.bench import held_bytes, measure

KINDS = (None, "int8", "int4")
WINDOW, WINDOWS = 512, 8
TOPIC = "specialnames"
NEW, BATCHES, REPETITIONS = 64, (1, 8), 5


def lost(model: Any, rows: np.ndarray) -> np.ndarray:
    """Minus the logarithm of each next token's probability, in nats, float64 [windows, T - 1]."""
    found = []
    for ids in rows:
        logits_tv = np.asarray(model.logits(ids[None]))[0, :-1].astype(np.float64)
        logits_tv -= logits_tv.max(1, keepdims=True)
        right = logits_tv[np.arange(len(ids) - 1), ids[1:]]
        found.append(np.log(np.exp(logits_tv).sum(1)) - right)
    return np.stack(found)


def decoder_row(kind: str | None, rows: np.ndarray, exact: np.ndarray | None) -> tuple:
    """The figures of SmolLM2, and its losses."""
    model = load_model("smollm2-135m-instruct", quantize=kind)
    losses = lost(model, rows)
    bench = measure(model, (WINDOW,), (NEW,), BATCHES, REPETITIONS)
    figures: dict[str, Any] = {
        "weights": kind or "float32",
        "perplexity": math.exp(losses.mean()),
        "megabytes": held_bytes(model.weights) / 1e6,
        "tokens_per_s": {test.label: round(test.mean, 1) for test in bench.tests},
    }
    if exact is not None:
        more = (losses - exact).ravel()
        figures["perplexity_more"] = math.expm1(more.mean())
        figures["standard_error"] = float(more.std() / math.sqrt(more.size))
    return figures, losses


def encoder_row(kind: str | None, texts: list[str], exact: np.ndarray | None) -> tuple:
    """The figures of MiniLM, and its embeddings."""
    model = load_model("all-minilm-l6-v2", quantize=kind)
    vectors = np.asarray(model.embed(texts, truncate=True))
    figures: dict[str, Any] = {
        "weights": kind or "float32",
        "megabytes": held_bytes(model.weights) / 1e6,
    }
    if exact is not None:
        cosines = (vectors * exact).sum(1)
        off = ~np.eye(len(texts), dtype=bool)
        moved = (vectors @ vectors.T - exact @ exact.T)[off]
        figures["least_cosine_with_float32"] = float(cosines.min())
        figures["similarities_move_by_rms"] = float(np.sqrt((moved**2).mean()))
    return figures, vectors


def main() -> None:
    """Runs each kind of both models and puts the figures beside this file."""
    from pydoc_data.topics import topics

    plain = load_model("smollm2-135m-instruct")
    ids = plain.encode(topics[TOPIC])[: WINDOW * WINDOWS]
    del plain
    rows = np.array(ids, np.int32).reshape(WINDOWS, WINDOW)
    texts = [topics[name] for name in sorted(topics)]
    figures: dict[str, Any] = {
        "decoder": "smollm2-135m-instruct",
        "predicted": rows.size - len(rows),
        "text": f"pydoc_data.topics[{TOPIC!r}] of Python {platform.python_version()}",
        "jax": jax.__version__,
        "decoders": [],
        "encoder": "all-minilm-l6-v2",
        "sections": len(texts),
        "encoders": [],
    }
    for name, row_of, given in (
        ("decoders", decoder_row, rows),
        ("encoders", encoder_row, texts),
    ):
        exact = None
        for kind in KINDS:
            row, answers = row_of(kind, given, exact)
            exact = answers if exact is None else exact
            figures[name].append(row)
            print(json.dumps(row), flush=True)
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
