"""Both halves as one: each question answered by the model that has not learned its subject.

    python experiments/questions/both.py --before FILE FILE --after FILE FILE

takes the examples (.jsonl of `llmasos eval`) of half 0 and half 1, of the untuned model and of the
two tuned ones, and prints accuracy, the nats that the right letter costs among the letters, and
the differences, each with its 95% interval; p is the paired permutation test's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmasos_jax.evals.metrics.intervals import bootstrap, paired_bootstrap, permutation


def read(paths: Sequence[Path]) -> list[dict]:
    """The examples of several files, in order of each one's index."""
    found = []
    for path in paths:
        rows = map(json.loads, filter(None, path.read_text("utf-8").split("\n")))
        found += sorted((row for row in rows if "index" in row), key=lambda row: row["index"])
    return found


def nats(row: dict) -> float:
    """-log of the right choice's share among the choices."""
    logp_c = np.array(row["logprobs"], np.float64)
    return float(np.logaddexp.reduce(logp_c) - logp_c[row["answer"]])


def compare(before: Sequence[dict], after: Sequence[dict]) -> dict[str, dict[str, list[float]]]:
    """Value, low and high of each figure, of both and of the difference, which has p, too.

    Raises:
      ValueError: the two are not of the same questions.
    """
    if [row["prompt"] for row in before] != [row["prompt"] for row in after]:
        raise ValueError(
            f"{len(before)} and {len(after)} examples, other questions; give both halves in order"
        )
    hit = lambda row: float(row["predicted"] == row["answer"])
    found = {}
    for name, of in (("accuracy", hit), ("nats", nats)):
        a, b = ([of(row) for row in rows] for rows in (before, after))
        ends = [bootstrap(a), bootstrap(b), paired_bootstrap(a, b)]
        rounded = [[round(x, 4) for x in (end.value, end.low, end.high)] for end in ends]
        rounded[2].append(round(permutation(a, b).p, 4))
        found[name] = dict(zip(("before", "after", "difference"), rounded, strict=True))
    return found


def main() -> None:
    """Prints them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, nargs=2, required=True)
    parser.add_argument("--after", type=Path, nargs=2, required=True)
    args = parser.parse_args()
    before, after = read(args.before), read(args.after)
    letters = lambda rows: {x: sum(r["predicted"] == x for r in rows) for x in range(5)}
    print(json.dumps(compare(before, after), indent=1))
    print("letters said before", letters(before), "after", letters(after))


if __name__ == "__main__":
    main()
