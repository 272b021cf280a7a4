"""What a sweep's folder says, without times and places."""

import json


def table(folder):
    """Of each setting in the report."""
    report = json.loads((folder / "report.json").read_text())
    kept = ("rank", "setting", "summary", "test", "p_holm", "verdict", "tokens")
    return [{name: row[name] for name in kept} for row in report["settings"]]


def losses(folder):
    """(step, loss) of each point."""
    found = {}
    for path in sorted(folder.glob("points/*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    return found
