"""What each pod config's step is before it is compiled: where weights lie, and which operations.

Run it to compare all with golden/pods.json; with `NAME --text=step.mlir` to read one step's
program; with `--write` after a change that is meant.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from collections import Counter
from pathlib import Path

# Before JAX starts: this host only lowers.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from llmasos_jax.config.build import load_config
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.plan.chips import parse_topology
from llmasos_jax.plan.pod import pod_devices
from llmasos_jax.train.step import Trainer, make_trainer

GOLDEN = Path(__file__).parent / "golden" / "pods.json"
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
_OPERATIONS = (
    "all_gather|reduce_scatter|all_reduce|collective_permute|all_to_all|dot_general|custom_call"
)


def trainer_of(name: str) -> Trainer:
    """The Trainer of a pod config on its topology, which is what the variant says."""
    cfg = load_config(name)
    topology = parse_topology(re.sub(r"^[^:]*:|-b\d+$", "", name))
    return make_trainer(cfg, make_mesh(cfg.mesh, pod_devices(topology)))


def weights(trainer: Trainer) -> list[str]:
    """A line for each weight: its name, shape, mesh axes of each dimension, part on a device."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainer.abstract_state.params):
        local = leaf.sharding.shard_shape(leaf.shape)
        spec = ", ".join("+".join(_names(entry)) or "-" for entry in leaf.sharding.spec)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        lines.append(f"{name}: {_by(leaf.shape)} over ({spec}) -> {_by(local)} {leaf.dtype}")
    return lines


def operations(text: str) -> list[str]:
    """A line for each kind of product, collective and kernel, with its shapes and how often."""
    found, waiting = Counter(), None
    for line in text.splitlines():
        if operation := re.search(rf"stablehlo\.({_OPERATIONS})\b", line):
            waiting = operation[1]
            if waiting == "custom_call":
                waiting = re.search(r"custom_call @[\w$.]+", line)[0]
        # Reductions have a body of their own, and their types after it.
        types = re.search(r"(?:[>)]|\}\)) : (\(?tensor<.*)$", line)
        has_body = line.endswith("({")
        if waiting and types and not has_body and (operation or line.lstrip().startswith("})")):
            sizes = re.findall(r"tensor<([^>]*)>", types[1])
            found[f"{waiting}: {' '.join(sizes)}"] += 1
            waiting = None
    return [f"{count} x {what}" for what, count in sorted(found.items())]


def fingerprint(name: str) -> dict[str, list[str]]:
    """What is compared: `weights` and `operations` of a config."""
    trainer = trainer_of(name)
    return {"weights": weights(trainer), "operations": operations(step_text(trainer))}


def step_text(trainer: Trainer) -> str:
    """The step's StableHLO."""
    return trainer.step.lower(trainer.abstract_state, trainer.abstract_batch).as_text()


def difference(name: str, found: dict[str, list[str]]) -> str:
    """What has changed against the golden file, and how to look at it; empty if nothing has."""
    wanted = json.loads(GOLDEN.read_text())["configs"].get(name, {"weights": [], "operations": []})
    lines = []
    for part, rows in found.items():
        changed = difflib.unified_diff(wanted[part], rows, "golden", "now", n=0, lineterm="")
        lines += [f"{part}: {line}" for line in changed if line[:3] not in ("---", "+++")]
    if not lines:
        return ""
    versions = json.loads(GOLDEN.read_text())["versions"]
    return "\n".join(
        [
            f"{name}: the training step is not what it was ({versions} then, {_versions()} now):",
            *lines,
            f"Read the program: python tests/pod_fingerprints.py {name} --text=step.mlir",
            "If the change is meant:   python tests/pod_fingerprints.py --write",
        ]
    )


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _versions() -> str:
    return f"jax {jax.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=CONFIGS)
    parser.add_argument("--text", type=Path, help="writes the program of one config here")
    parser.add_argument("--write", action="store_true", help="takes what is found as golden")
    args = parser.parse_args()
    if args.text:
        args.text.write_text(step_text(trainer_of(args.names[0])))
        return
    found = {name: fingerprint(name) for name in args.names}
    if args.write:
        kept = json.loads(GOLDEN.read_text())["configs"] if GOLDEN.exists() else {}
        stored = {"versions": _versions(), "configs": {**kept, **found}}
        GOLDEN.write_text(json.dumps(stored, indent=1) + "\n")
        return
    print("\n\n".join(filter(None, (difference(*item) for item in found.items()))) or "all equal")


if __name__ == "__main__":
    main()
