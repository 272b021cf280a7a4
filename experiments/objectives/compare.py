"""Accuracies of `labels.py` by objective, as the report of a sweep would compare them.

    python experiments/objectives/compare.py runs/labels/report.json

Each seed goes on from weights of its own, so its runs are points of their own there; here they are
seeds of one setting. Tests are paired by seed, p after Holm. Writes result.json beside this file.
"""

import json
import sys
from pathlib import Path

from llmasos_jax.sweep.report.statistics import compare, holm, summarize

HERE = Path(__file__).parent
PAIRS = (
    ("mlm", "causal"),
    ("prefix_lm", "causal"),
    ("causal", "untrained"),
    ("prefix_lm", "untrained"),
    ("mlm", "untrained_both"),
)


def accuracies(report: dict) -> dict[str, dict[int, float]]:
    """Of each objective, by seed."""
    found: dict[str, dict[int, float]] = {}
    for point in report["points"]:
        if point["status"] != "done":
            raise SystemExit(f"{point['name']} is {point['status']}; run the sweep again")
        name = point["name"].partition(",")[0]
        found.setdefault(name, {})[point["seed"]] = point["values"]["heldout_accuracy"]
    return found


def main(path: Path) -> None:
    """Writes and prints."""
    found = accuracies(json.loads(path.read_text("utf-8")))
    means = {name: summarize(list(seeds.values())) for name, seeds in found.items()}
    tests = [compare(found[one], found[other]) for one, other in PAIRS]
    adjusted = holm([test.p for test in tests if test])
    result = {
        "accuracy": {
            name: {"mean": means[name].mean, "half_width": means[name].half_width, "seeds": seeds}
            for name, seeds in found.items()
        },
        "differences": [
            {"of": one, "to": other, "mean": test.difference, "half_width": test.half_width, "p": p}
            for (one, other), test, p in zip(PAIRS, tests, adjusted, strict=True)
            if test
        ],
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
