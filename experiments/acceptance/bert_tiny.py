"""Trains `configs/bert_tiny.py` and draws what it learns beside what one answer for all reaches.

The criterion: held-out masked accuracy of at least 1.5 times the most frequent token's, next
sentence accuracy above 60%, on two CPU cores. Figures go to `bert_tiny.json` and the curve to
`bert_tiny.svg`, beside this file; a run that is finished in the folder is not done again:

    python experiments/acceptance/bert_tiny.py --workdir=runs/bert_tiny
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from llmasos_jax import api
from llmasos_jax.train.hooks import metrics_path, read_metrics
from llmasos_jax.train.result import TrainResult

HERE = Path(__file__).parent
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 720, 360, 60, 30, 50, 190
CURVES = {
    "heldout_accuracy": ("masked tokens", "#1f77b4"),
    "heldout_nsp_accuracy": ("next sentence", "#d62728"),
}


def main() -> None:
    """Trains, or reads what was trained, and writes both files."""
    parser = argparse.ArgumentParser(description="Trains bert_tiny and draws its curve.")
    parser.add_argument("--config", default="bert_tiny")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bert_tiny"))
    arguments = parser.parse_args()
    result = api.train(arguments.config, arguments.workdir)
    lines = read_metrics(metrics_path(arguments.workdir))
    heldout = [line for line in lines if "heldout_accuracy" in line]
    speeds = sorted(line["tokens_per_s"] for line in lines if "tokens_per_s" in line)
    figures = summary(result) | {
        "tokens_per_s_median": round(speeds[len(speeds) // 2]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "jax": version("jax"),
        "heldout": [
            {name: line[name] for name in ("step", "heldout_loss", *CURVES)} for line in heldout
        ],
    }
    (HERE / "bert_tiny.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (HERE / "bert_tiny.svg").write_text(draw(heldout, result), encoding="utf-8")
    print(result)


def summary(result: TrainResult) -> dict[str, object]:
    """The figures of the criterion, and whether it is met."""
    ratio = (result.heldout_accuracy or 0.0) / (result.most_frequent_accuracy or 1.0)
    values = {
        name: value for name, value in result.to_dict().items() if name != "workdir" and value
    }
    met = ratio >= 1.5 and (result.heldout_nsp_accuracy or 0.0) > 0.6
    return values | {"times_most_frequent": round(ratio, 2), "criterion_met": met}


def draw(heldout: list[dict], result: TrainResult) -> str:
    """Both accuracies over the steps as an SVG, dashed lines for their baselines."""
    last = max(line["step"] for line in heldout)
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * step / last
    y = lambda share: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        level = y(tenth / 10)
        parts.append(
            f'<path d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{tenth * 10}%</text>'
        )
    for quarter in range(5):
        step = round(last * quarter / 4)
        parts.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{step:,}</text>"
        )
    parts.append(
        f'<text x="{x(last / 2):.1f}" y="{HEIGHT - 12}" text-anchor="middle">optimizer steps; '
        "held-out accuracy, dashed: one answer for all</text>"
    )
    baselines = (result.most_frequent_accuracy or 0.0, result.larger_class_accuracy or 0.0)
    for (key, (name, colour)), baseline in zip(CURVES.items(), baselines, strict=True):
        points = " ".join(f"{x(line['step']):.1f},{y(line[key]):.1f}" for line in heldout)
        end = heldout[-1][key]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        side = WIDTH - RIGHT + 8
        for share, label in ((end, f"{name} {end:.1%}"), (baseline, f"baseline {baseline:.1%}")):
            parts.append(f'<text x="{side}" y="{y(share) + 4:.1f}" fill="{colour}">{label}</text>')
        parts.append(
            f'<path d="M{LEFT} {y(baseline):.1f}H{WIDTH - RIGHT}" stroke="{colour}" '
            'stroke-dasharray="5 4"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
