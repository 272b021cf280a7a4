"""`configs/quickstart.py` trained to its end under several precisions, from one seed on one text.

The held-out loss of each, beside that of bfloat16 products with float32 weights and moments: int8
and fp8 products have to end within 1%. A CPU computes the codes that a TPU or GPU would, in
bfloat16 (`llmasos_jax/nn/quantized.py`), so these are losses, not speeds. Figures go to
`quantized_training.json` beside this file, after each run:

    python experiments/acceptance/quantized_training.py [--steps=400] [--policies=int8,fp8,...]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from llmasos_jax.config.build import build, read_config
from llmasos_jax.config.schema import Config
from llmasos_jax.train.run import run

HERE = Path(__file__).parent
BASE = "bfloat16"
POLICIES = {
    BASE: {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize": "int8"},
    "fp8": {"dtype": "bfloat16", "quantize": "fp8"},
    "float16": {"dtype": "float16"},
    "bfloat16 weights with copies": {"dtype": "bfloat16", "weights": "bfloat16"},
    "int8 moments": {"dtype": "bfloat16", "moments": "int8"},
    "bfloat16 weights, int8 moments": {
        "dtype": "bfloat16",
        "weights": "bfloat16",
        "moments": "int8",
    },
    "bfloat16 weights without copies, int8 moments": {
        "dtype": "bfloat16",
        "weights": "bfloat16",
        "master": False,
        "moments": "int8",
    },
}


def config_of(policy: str, steps: int) -> Config:
    """The quickstart under a policy; a shorter run has the whole schedule in fewer steps."""
    config = read_config("quickstart")
    config.train.steps = steps
    config.train.eval_every_steps = max(1, steps // 4)
    config.sample.prompt = None
    for name, value in POLICIES[policy].items():
        config.precision[name] = value
    return build(config)


def curve(workdir: Path) -> dict[int, float]:
    """Held-out loss by step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["heldout_loss"] for line in lines if "heldout_loss" in line}


def main() -> None:
    """Runs each policy and writes the figures."""
    parser = argparse.ArgumentParser(description="The quickstart under several precisions.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--out", type=Path, default=HERE / "quantized_training.json")
    args = parser.parse_args()
    runs: dict = {}
    if args.out.exists():
        found = json.loads(args.out.read_text())
        # A run of another length is another experiment.
        runs = found["runs"] if found["steps"] == args.steps else {}
    for policy in args.policies.split(","):
        with tempfile.TemporaryDirectory() as name:
            result = run(config_of(policy, args.steps), Path(name))
            runs[policy] = {
                "heldout_loss": result.heldout_loss,
                "train_seconds": round(result.seconds, 1),
                "curve": curve(Path(name)),
            }
        for values in runs.values():
            if BASE in runs:
                share = values["heldout_loss"] / runs[BASE]["heldout_loss"] - 1.0
                values["above_bfloat16"] = round(share, 5)
        print(policy, runs[policy], flush=True)
        figures = {"steps": args.steps, "jax": version("jax"), "runs": runs}
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
