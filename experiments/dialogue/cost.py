"""What people's own replies cost a model, and how much less they cost another.

    python experiments/dialogue/cost.py results/replies-A.jsonl results/replies-B.jsonl

takes the examples of `replies.toml` and prints the perplexity per byte of the right replies, of
both models and as B less A, with 95% intervals; p is the paired permutation test's.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmasos_jax.evals.metrics.intervals import bootstrap, paired_bootstrap, permutation


def rows_of(path: Path) -> np.ndarray:
    """Nats and bytes of each right reply, float64 [N, 2], by the example's index."""
    lines = map(json.loads, filter(None, path.read_text("utf-8").split("\n")))
    found = []
    for row in sorted((x for x in lines if "index" in x), key=lambda x: x["index"]):
        text = row["continuations"][row["answer"]]
        found.append((-row["logprobs"][row["answer"]], len(text.encode("utf-8"))))
    return np.array(found, np.float64)


def perplexity(sums: np.ndarray) -> float:
    """Per byte, of the sums of nats and of bytes."""
    return math.exp(sums[0] / sums[1])


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, list[float]]:
    """Value, low and high of both and of the difference, which has p, too."""
    ends = [
        bootstrap(a, perplexity),
        bootstrap(b, perplexity),
        paired_bootstrap(a, b, perplexity),
    ]
    rounded = [[round(x, 4) for x in (end.value, end.low, end.high)] for end in ends]
    rounded[2].append(round(permutation(a, b, perplexity).p, 4))
    return dict(zip(("before", "after", "difference"), rounded, strict=True))


def main(files: Sequence[str]) -> None:
    """Prints them as JSON."""
    a, b = (rows_of(Path(file)) for file in files)
    print(json.dumps(compare(a, b), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
