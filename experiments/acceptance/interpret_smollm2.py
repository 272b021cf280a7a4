"""Looks inside of SmolLM2-135M: what the tiny models of the tests cannot show.

    python experiments/acceptance/interpret_smollm2.py MODEL

MODEL is its folder or file, or its name where it can be had. Writes interpret_smollm2.json beside
it: completeness of integrated gradients on several sentences and from several baselines, the lens'
last layer against the output, what patching brings back. Ends with status 1 unless all of it holds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.evals.interpret.attention import attention_maps
from llmasos_jax.evals.interpret.attribution import Attribution, integrated_gradients
from llmasos_jax.evals.interpret.lens import logit_lens
from llmasos_jax.evals.interpret.patching import activation_patching
from llmasos_jax.evals.interpret.scores import token_logprobs
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model

CLEAN, CORRUPTED = "The capital of France is", "The capital of Italy is"
# Texts, the token whose logit is attributed, and the one whose logit is taken from it.
SENTENCES = [
    (CLEAN, " Paris", " Rome"),
    ("The opposite of hot is", " cold", None),
    ("Two plus two equals", " four", " five"),
    ("Water boils at 100 degrees", " Celsius", " Fahrenheit"),
]


def main(source: str) -> int:
    model, start = load_model(source), time.perf_counter()
    found = {
        "integrated_gradients": [
            attributed(model, text, token, against, "mean") for text, token, against in SENTENCES
        ],
        "from_other_baselines": [
            attributed(model, CLEAN, " Paris", " Rome", name) for name in ("end of text", CORRUPTED)
        ],
        "from_zeros": from_zeros(model),
        **looked_at(model),
    }
    gaps = [each["gap"] for part in list(found.values())[:2] for each in part]
    holds = {
        "integrated_gradients_sum_within_1_percent": max(gaps) <= 0.01,
        "lens_last_layer_is_the_output": found["lens"]["last_layer_against_output"] <= 1e-4,
        "attention_rows_sum_to_one": found["attention_rows_sum_to_one_within"] <= 1e-5,
        "all_layers_patched_restore_the_score": all(
            abs(x - 1) <= 1e-4
            for x in (found["patching"]["everywhere"], *found["patching"]["layers_all_tokens"])
        ),
    }
    seconds = {"seconds_with_compiling": round(time.perf_counter() - start, 1)}
    text = json.dumps({"holds": holds, **found, **seconds}, indent=1, ensure_ascii=False) + "\n"
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(holds.values()) else 1


def attributed(
    model: Model, text: str, token: str, against: str | None, baseline: str
) -> dict[str, Any]:
    """Integrated gradients, and how well they add up."""
    begins: Any = None if baseline == "mean" else baseline
    if baseline == "end of text":
        begins = [model._require_tokenizer().eos_id] * len(model.encode(text))
    start = time.perf_counter()
    found: Attribution = integrated_gradients(model, text, token, against=against, baseline=begins)
    return {
        "text": text,
        "token": token,
        "against": against,
        "baseline": baseline,
        "values": {
            f"{i} {t}": round(float(v), 4)
            for i, (t, v) in enumerate(zip(found.tokens, found.values, strict=True))
        },
        "sum": float(found.values.sum()),
        "difference_of_scores": found.score - found.baseline,
        "gap": found.gap,
        "evaluations": found.evaluations,
        "seconds": round(time.perf_counter() - start, 1),
    }


def from_zeros(model: Model) -> str:
    """What is said of a path that float32 cannot follow."""
    zeros = np.zeros(model.config.embedding_dim, np.float32)
    try:
        found = integrated_gradients(model, CLEAN, " Paris", baseline=zeros, max_evaluations=600)
    except GenerationError as error:
        return f"refused: {error}"
    return f"gap {found.gap}"


def looked_at(model: Model) -> dict[str, Any]:
    """The lens, the maps, what patching brings back, and the text's score."""
    logits = np.asarray(model.logits([model.encode(CLEAN)])[0])
    lens = logit_lens(model, CLEAN, with_logits=True)
    maps = attention_maps(model, CLEAN)
    patching = activation_patching(model, CLEAN, CORRUPTED, " Paris", against=" Rome")
    rounded = lambda values: [round(float(v), 5) for v in values]
    return {
        "lens": {
            "text": CLEAN,
            "last_layer_against_output": float(np.abs(np.asarray(lens.logits)[-1] - logits).max()),
            "guesses_at_the_last_token": [row[-1] for row in lens.guesses],
        },
        "attention_rows_sum_to_one_within": float(np.abs(maps.maps.sum(-1) - 1).max()),
        "patching": {
            "clean": patching.clean,
            "corrupted": patching.corrupted,
            "everywhere": patching.everywhere,
            "layers_all_tokens": rounded(patching.layers),
            "at_the_country": rounded(patching.effects[:, 3]),
            "at_the_last_token": rounded(patching.effects[:, -1]),
        },
        "log_probability": token_logprobs(model, CLEAN).total,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
