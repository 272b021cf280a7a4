"""pass@1 of what models wrote for `humaneval.toml`: every body runs in the sandbox.

    python experiments/code/passes.py DIR/asked.jsonl results/humaneval-*.jsonl

prints for each file the share of problems that pass, with its 95% interval, and of two files the
difference with the paired permutation test's p.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llmasos_jax.evals.metrics.intervals import bootstrap, paired_bootstrap, permutation
from llmasos_jax.evals.sandbox.passk import read_problems, score_code


def main() -> None:
    """Runs the bodies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", type=Path)
    parser.add_argument("records", type=Path, nargs="+")
    args = parser.parse_args()
    problems = read_problems(args.problems)
    by_prompt = {problem.prompt: name for name, problem in problems.items()}
    found = []
    for path in args.records:
        lines = path.read_text("utf-8").split("\n")
        rows = [row for row in map(json.loads, filter(None, lines)) if "prompt" in row]
        written = {by_prompt[row["prompt"]]: [row["text"]] for row in rows}
        asked = {name: problem for name, problem in problems.items() if name in written}
        passed = score_code(asked, written).passed
        hits = [float(passed[name][0]) for name in asked]
        interval = bootstrap(hits)
        names = [name for name in asked if passed[name][0]]
        print(
            f"{path.stem}: {int(sum(hits))} of {len(hits)} pass, "
            f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]: {', '.join(names)}"
        )
        found.append(hits)
    if len(found) == 2:
        apart, p = paired_bootstrap(*found), permutation(*found).p
        print(f"difference {apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}], p = {p:.3f}")


if __name__ == "__main__":
    main()
