"""Fine-tuning runs that are killed and started again, beside runs that never were: bit for bit.

Each case is real processes of `llmasos finetune`. A run is stopped by a signal at a moment that is
seen from outside (a step in `metrics.jsonl`, half a checkpoint on disk), and the same command is
given again until it ends. `killed_finetunes.json` beside this file has, for each case, what was
there when the signal came, and whether all arrays of the last checkpoint (adapter, optimizer's
moments, key) and all losses are those of the run that was never stopped:

    python experiments/acceptance/killed_finetunes.py              # all, some minutes
    python experiments/acceptance/killed_finetunes.py lora dpo     # these, the others are kept
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tuning_processes import (  # noqa: E402
    Tuning,
    after_step,
    has_made,
    in_the_reference_pass,
    prepare,
    while_saving,
)

KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)
# Made anew for each case: a moment may remember what it has seen.
Stops = Callable[[], Sequence[tuple[Callable[[Tuning], bool], int]]]
MOMENTS: Mapping[str, Stops] = {
    "the folder is there, nothing in it": lambda: [(has_made("config.json"), KILL)],
    "before the first checkpoint": lambda: [(after_step(2), KILL)],
    "the first checkpoint half written": lambda: [(while_saving(4), KILL)],
    "in a step": lambda: [(after_step(6, 0.002), KILL)],
    "a later checkpoint half written": lambda: [(while_saving(8), KILL)],
    "the last checkpoint half written": lambda: [(while_saving(12), KILL)],
    "twice: before the first checkpoint, in a step": lambda: [
        (after_step(3), KILL),
        (after_step(10), KILL),
    ],
    "twice: two checkpoints half written": lambda: [
        (while_saving(4), KILL),
        (while_saving(8), KILL),
    ],
    "SIGTERM in a step": lambda: [(after_step(6), TERM)],
    "SIGTERM, then killed": lambda: [(after_step(5), TERM), (after_step(9), KILL)],
}
REFERENCE: Mapping[str, Stops] = {
    "in the reference pass": lambda: [(in_the_reference_pass(0.3), KILL)],
    "in the reference pass, twice, and in a step": lambda: [
        (in_the_reference_pass(0.0), KILL),
        (in_the_reference_pass(0.6), KILL),
        (after_step(7), KILL),
    ],
}
# A step takes half a second here.
WITH_A_REAL_MODEL: Mapping[str, Stops] = {
    "in a step": lambda: [(after_step(3, 0.2), KILL)],
    "the first checkpoint half written": lambda: [(while_saving(4), KILL)],
    "twice: before the first checkpoint, in a step": lambda: [
        (after_step(2, 0.1), KILL),
        (after_step(5, 0.3), KILL),
    ],
    "SIGTERM in a step": lambda: [(after_step(5), TERM)],
}
SHORT = (
    *("train.steps=8", "train.batch_size=2", "data.sequence_length=48"),
    *("train.eval_every_steps=8", "train.eval_batches=1"),
)


@dataclass(frozen=True)
class Method:
    """A run, and when it is stopped.

    Attributes:
      objective: "sft" or "dpo".
      options: of the config.
      moments: when, by name.
      base: of the library; None for a tiny random one.
      pairs: records of the data.
      own_cache: whether each run has caches of its own, so that no other has scored its pairs.
    """

    objective: str
    options: Sequence[str] = ()
    moments: Mapping[str, Stops] = field(default_factory=lambda: MOMENTS)
    base: str | None = None
    pairs: int = 40
    own_cache: bool = False

    def run(self, folder: Path, name: str, *more: str) -> Tuning:
        """A training folder of this name, not started."""
        options = [f"--config.{option}" for option in (*self.options, *more)]
        home = folder / f"{name}-caches" if self.own_cache else None
        return Tuning(folder, name, self.objective, options, home)


METHODS = {
    "lora": Method("sft"),
    "dora": Method("sft", ("finetune.dora=True", "finetune.rank_stabilized=True")),
    "int4": Method("sft", ("finetune.quantize=int4",)),
    "bfloat16": Method("sft", ("precision.dtype=bfloat16",)),
    "dpo": Method("dpo"),
    "dpo, its reference": Method("dpo", ("train.steps=8",), REFERENCE, None, 6000, True),
    "smollm2": Method("sft", SHORT, WITH_A_REAL_MODEL, "smollm2-135m-instruct"),
    "smollm2, dpo": Method(
        *("dpo", (*SHORT, "data.sequence_length=112"), WITH_A_REAL_MODEL, "smollm2-135m-instruct"),
    ),
}


def differences(run: Tuning, straight: Tuning) -> dict[str, Any]:
    """The arrays of two last checkpoints, and the losses on the way to them."""
    found, wanted = dict(run.leaves()), dict(straight.leaves())
    names = sorted(found.keys() | wanted.keys())
    return {
        "arrays": len(wanted) - 1,
        "of_them_the_adapters": sum(name.startswith("params/") for name in wanted),
        "different": [name for name in names if found.get(name) != wanted.get(name)],
        "losses": len(straight.losses()),
        "same_losses": run.losses() == straight.losses(),
    }


def stopped(method: Method, folder: Path, straight: Tuning, stops: Stops) -> dict[str, Any]:
    """Stops a run at each of the moments, lets it end, and compares."""
    run = method.run(folder, "stopped")
    seen = []
    for is_time, number in stops():
        status = run.stop(is_time, number)
        seen.append(
            {
                "signal": signal.Signals(number).name,
                "status": status,
                "newest_step": run.step(),
                "whole_checkpoints": run.saved(),
                "half_written": run.half_saved(),
                "references": len(run.references()),
            }
        )
    return {"stops": seen, "last_status": run.finish()} | differences(run, straight)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """All moments of one method."""
    method = METHODS[name]
    prepare(folder, method.base, method.pairs)
    straight = method.run(folder, "straight")
    row: dict[str, Any] = {"options": list(method.options), "status": straight.finish()}
    if row["status"]:
        raise RuntimeError(straight.said())
    # That the comparison can tell runs apart.
    other = method.run(folder, "other", "train.seed=1")
    row["status_of_another_seed"] = other.finish()
    row["different_with_another_seed"] = len(differences(other, straight)["different"])
    row["moments"] = {}
    for moment, stops in method.moments.items():
        row["moments"][moment] = stopped(method, folder, straight, stops)
        print(name, "|", moment, "|", json.dumps(row["moments"][moment]), flush=True)
        for rest in folder.glob("stopped*"):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(METHODS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=HERE / "killed_finetunes.json")
    args = parser.parse_args()
    names = args.methods or list(METHODS)
    if unknown := set(names) - set(METHODS):
        parser.error(f"there is no {sorted(unknown)}")
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    result["jax"] = version("jax")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = measure(name, Path(folder) / "run")
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
