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
CONFIGS = (
    "llama2_7b:v5e:2x4",
    "llama2_7b:v5e:16x16",
    "llama3_1_8b:v6e:16x16",
    "llama3_1_8b:v6e:16x16-b8",
    "llama2_70b:v5p:4x4x4",
    "llama2_70b:v5p:8x8x8",
    "gpt3_175b:v5p:4x4x4",
    "gpt3_175b:v5e:16x16",
    "palm_540b:v4:8x16x16",
    "mixtral_8x7b:v5p:4x4x4",
    "bert_large:v5e:2x4",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=CONFIGS)
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
