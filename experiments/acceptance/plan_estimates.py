"""The closed form of `llmasos plan` beside what the TPU compiler said of the pod configs.

Reads compile_pods.json, estimates each of its runs anew, and writes plan_estimates.json beside
itself. Needs no TPU compiler; a few seconds.

    python experiments/acceptance/plan_estimates.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

from llmasos_jax.config.build import load_config
from llmasos_jax.plan.chips import parse_topology
from llmasos_jax.plan.estimate import estimate_figures

HERE = Path(__file__).parent


def _told(figures: dict[str, Any]) -> dict[str, float]:
    work = figures["work"]
    return {
        "peak_gib": round(figures["memory"]["peak"] / (1 << 30), 2),
        "product_tflop": round(work["flops"] / 1e12, 3),
        "product_and_kernel_tflop": round((work["flops"] + work["kernel_flops"]) / 1e12, 3),
        "hbm_gb": round(work["hbm_bytes"] / 1e9, 1),
        "link_gb": round(sum(t["link_bytes"] for t in figures["traffic"]) / 1e9, 2),
    }


def main() -> None:
    found: dict[str, Any] = {}
    for name, stored in json.loads((HERE / "compile_pods.json").read_text()).items():
        versions, compiled = list(stored.items())[-1]
        # The variant is the topology, and maybe how many rows a chip has.
        topology = re.sub(r"^[^:]*:|-b\d+$", "", name)
        estimate = estimate_figures(load_config(name), parse_topology(topology))
        if estimate.mesh != compiled["mesh"]:
            print(f"{name}: left out, another mesh was compiled")
            continue
        ours, theirs = _told(dataclasses.asdict(estimate)), _told(compiled)
        ratios = {key: round(ours[key] / theirs[key], 3) for key in ours}
        found[name] = {"compiler": versions, "said": theirs, "estimate": ours, "ratio": ratios}
        print(name, ratios)
    (HERE / "plan_estimates.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
