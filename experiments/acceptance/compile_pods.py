"""Plans every pod config with the real TPU compiler, and writes what it says beside this file.

Needs the extra `tpu`. One to five minutes for each config on two cores; what was planned before
with the same versions and the same code comes from the cache.

    python experiments/acceptance/compile_pods.py                   # all
    python experiments/acceptance/compile_pods.py llama2_7b:v5e:2x4
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.metadata import version
from pathlib import Path

from llmasos_jax.config.build import load_config
from llmasos_jax.plan.run import make_plan

OUT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[2]
# The pod configs are those whose steps the tests hold.
CONFIGS = json.loads((ROOT / "tests" / "golden" / "pods.json").read_text())["configs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CONFIGS))
    args = parser.parse_args()
    versions = f"jax {version('jax')}, libtpu {version('libtpu')}"
    for name in args.names:
        # The variant is the topology, and maybe how many rows a chip has.
        plan = make_plan(load_config(name), re.sub(r"^[^:]*:|-b\d+$", "", name))
        print(f"\n{plan}\n", flush=True)
        stored = json.loads(OUT.read_text()) if OUT.exists() else {}
        stored.setdefault(name, {})[versions] = plan.to_dict()
        OUT.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
