"""Flips single bytes of a real checkpoint: each is noticed when it is restored, or harmless.

A small run of `llmasos train` is saved; then, again and again, one byte of one of its files is
changed (one to eight of its bits), the step is restored, and what came of it is noted: an error
that names the step, or the very state that was saved. A third thing, another state without an
error, would be a fault. Files are sampled evenly, however small they are, and of each file its
first and last bytes are among the samples. Writes flipped_bytes.json beside this file.

    python experiments/acceptance/flipped_bytes.py [--samples=400] [--seed=0]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
from commands import run  # noqa: E402
from host_runs import prepare  # noqa: E402

from llmasos_jax.checkpoint import steps  # noqa: E402
from llmasos_jax.checkpoint.leaves import nest  # noqa: E402
from llmasos_jax.checkpoint.orbax import Checkpointer  # noqa: E402
from llmasos_jax.checkpoint.stored import read_leaves  # noqa: E402
from llmasos_jax.errors import DamagedCheckpointError  # noqa: E402
from llmasos_jax.verify.digests import digests_of_state  # noqa: E402


def target_of(folder: Path) -> Any:
    """The abstract state that a step folder has."""
    key = jax.eval_shape(lambda: jax.random.key(0)).dtype

    def like(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = key if leaf.dtype == str(key) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return nest({name: like(leaf) for name, leaf in read_leaves(folder).items()})


def places(folder: Path, samples: int, seed: int) -> list[tuple[Path, int, int]]:
    """File, offset and the bits to change, for each sample."""
    rng = random.Random(seed)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    found = []
    for index in range(samples):
        path = files[index % len(files)]
        last = path.stat().st_size - 1
        turn = index // len(files)
        offset = (0, last)[turn] if turn < 2 else rng.randint(0, last)
        bits = 1 << rng.randrange(8) if rng.random() < 0.7 else rng.randint(1, 255)
        found.append((path, offset, bits))
    return found


def flip_all(step_folder: Path, samples: int, seed: int) -> dict[str, Any]:
    """Flips, restores and flips back, and counts what came of it."""
    keeper = Checkpointer(step_folder.parent)
    target, step = target_of(step_folder), int(step_folder.name)
    before = keeper.restore(target, step)
    wanted = digests_of_state(before.state), before.data_state, before.config
    seen: Counter[str] = Counter()
    by_file: dict[str, Counter[str]] = {}
    faults = []
    for path, offset, bits in places(step_folder, samples, seed):
        content = path.read_bytes()
        changed = bytearray(content)
        changed[offset] ^= bits
        path.write_bytes(changed)
        name = path.relative_to(step_folder).as_posix()
        try:
            found = keeper.restore(target, step)
            same = (digests_of_state(found.state), found.data_state, found.config) == wanted
            verdict = "harmless" if same else "FAULT"
        except DamagedCheckpointError:
            verdict = "detected"
        if verdict == "FAULT":
            faults.append([name, offset, bits])
        seen[verdict] += 1
        by_file.setdefault(name, Counter())[verdict] += 1
        path.write_bytes(content)
    after = keeper.restore(target, step)
    keeper.close()
    if (digests_of_state(after.state), after.data_state, after.config) != wanted:
        raise SystemExit("the checkpoint is not what it was before")
    return {
        "samples": sum(seen.values()),
        "files": len(by_file),
        **{verdict: seen[verdict] for verdict in ("detected", "harmless", "FAULT")},
        "harmless_in": sorted(n for n, counts in by_file.items() if counts["harmless"]),
        "faults": faults,
    }


def main() -> int:
    """Trains, flips, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        config = prepare(home / "config")
        run("-m", "llmasos", "train", f"--config={config}", f"--workdir={home}/run", home=home)
        seen = flip_all(steps.find_step(home / "run"), args.samples, args.seed)
    (HERE / "flipped_bytes.json").write_text(json.dumps(seen, indent=2) + "\n")
    print(json.dumps(seen, indent=2))
    return 1 if seen["FAULT"] else 0


if __name__ == "__main__":
    sys.exit(main())
