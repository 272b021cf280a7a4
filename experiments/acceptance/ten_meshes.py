"""Loss and gradients of three steps, on every mesh of eight fake devices against one device.

A decoder with every option, a mixture of experts and BERT (masked tokens and sentence pairs), in
float32; each gradient leaf by itself, error relative to its norm. Models and meshes are those of
`tests/mesh_steps.py`. Figures go to `ten_meshes.json` beside this file, and a table is printed:

    python experiments/acceptance/ten_meshes.py
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))

from mesh_steps import MESHES, MODELS, errors, three_steps, wanted  # noqa: E402

LIMIT = 1e-5


def main() -> None:
    """Runs the whole product; exit status 1 where an error is above the limit."""
    results: dict[str, dict] = {}
    worst = 0.0
    for mesh, cfg in MESHES.items():
        for model in MODELS:
            start = time.monotonic()
            found = errors(three_steps(model, cfg), wanted(model))
            found = {name: e if math.isfinite(e) else math.inf for name, e in found.items()}
            where = max(found, key=found.__getitem__)
            worst = max(worst, found[where])
            results.setdefault(mesh, {})[model] = {"largest": found[where], "where": where}
            seconds = time.monotonic() - start
            print(f"{mesh:34s} {model:8s} {found[where]:.1e}  {where}  {seconds:.0f} s", flush=True)
        record = {"steps": 3, "limit": LIMIT, "worst": worst, "jax": version("jax")}
        text = json.dumps(record | {"meshes": results}, indent=1)
        (HERE / "ten_meshes.json").write_text(text + "\n")
    print(f"largest error {worst:.1e}, limit {LIMIT:.0e}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
