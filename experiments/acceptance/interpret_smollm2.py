"""Looks inside of SmolLM2-135M: what the tiny models of the tests cannot show.

    python experiments/acceptance/interpret_smollm2.py MODEL

MODEL is its folder, or its name where it can be had. Writes interpret_smollm2.json beside it:
completeness of integrated gradients, the lens' last layer against the output, what patching brings
back.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from llmasos_jax.evals.interpret.attention import attention_maps
from llmasos_jax.evals.interpret.attribution import integrated_gradients
from llmasos_jax.evals.interpret.lens import logit_lens
from llmasos_jax.evals.interpret.patching import activation_patching
from llmasos_jax.evals.interpret.scores import token_logprobs
from llmasos_jax.generate.load import load_model

CLEAN, CORRUPTED = "The capital of France is", "The capital of Italy is"


def main(source: str) -> None:
    model = load_model(source)
    start = time.perf_counter()
    ids = model.encode(CLEAN)
    logits = np.asarray(model.logits([ids])[0])
    lens = logit_lens(model, CLEAN, with_logits=True)
    maps = attention_maps(model, CLEAN)
    path = integrated_gradients(model, CLEAN, " Paris", against=" Rome", baseline=CORRUPTED)
    patching = activation_patching(model, CLEAN, CORRUPTED, " Paris", against=" Rome")
    scores = token_logprobs(model, CLEAN)
    best = {str(i): row[-1] for i, row in enumerate(lens.guesses)}
    found = {
        "text": CLEAN,
        "lens": {
            "last_layer_against_output": float(np.abs(lens.logits[-1] - logits).max()),
            "guesses_at_the_last_token": best,
        },
        "attention_rows_sum_to_one_within": float(np.abs(maps.maps.sum(-1) - 1).max()),
        "integrated_gradients": {
            "tokens": path.tokens,
            "values": [round(float(v), 4) for v in path.values],
            "score": path.score,
            "baseline": path.baseline,
            "gap": path.gap,
            "evaluations": path.evaluations,
        },
        "patching": {
            "clean": patching.clean,
            "corrupted": patching.corrupted,
            "everywhere": patching.everywhere,
            "layers_all_tokens": [round(float(v), 4) for v in patching.layers],
            "at_the_country": [round(float(v), 4) for v in patching.effects[:, 3]],
            "at_the_last_token": [round(float(v), 4) for v in patching.effects[:, -1]],
        },
        "log_probability": scores.total,
        "seconds_with_compiling": round(time.perf_counter() - start, 1),
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
