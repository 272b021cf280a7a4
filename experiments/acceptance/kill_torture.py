"""A run killed by SIGKILL at 200 random moments is the run that nobody disturbed, bit for bit.

    python experiments/acceptance/kill_torture.py [--kills=200] [--seed=0]

A real process of `llmasos train` is killed and started again by the same command. Every second kill
comes while a checkpoint is being written; of the others each fourth comes before the first step
(while Python starts, while the state is restored) and the rest somewhere in a step. After each kill
every checkpoint that is there has to be readable and the newest no older than before; each life has
to go on with the state that the undisturbed run had after that step, and with the very next batch.
In the end all batches, losses and leaves are compared. Writes kill_torture.json beside this file.
About twenty minutes for 200 kills on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from commands import environment  # noqa: E402

from llmasos_jax.checkpoint import steps  # noqa: E402
from llmasos_jax.train.hooks import read_metrics  # noqa: E402
from llmasos_jax.verify.digests import digests_of_checkpoint  # noqa: E402
from llmasos_jax.verify.phases import read_batches  # noqa: E402
from llmasos_jax.verify.witness import HOOK, VARIABLE, Orders  # noqa: E402

STEPS_OF_A_LIFE = 20  # on average, if it is let begin
OPTIONS = (
    f"--config.train.hooks=('{HOOK}',)",
    "--config.data.max_documents=8",
    "--config.train.log_every_steps=1",
    "--config.train.dropout_rate=0.1",
    "--config.train.eval_every_steps=50",
    "--config.checkpoint.every_steps=5",
)


class Run:
    """A training folder, and the lives of its process."""

    def __init__(self, home: Path, name: str, *options: str) -> None:
        self.home, self.workdir = home, home / name
        self.words = [sys.executable, "-m", "llmasos", "train", "--config=tiny"]
        self.words += [f"--workdir={self.workdir}", *OPTIONS, *options]
        self.log, self.lives = home / f"{name}.log", 0

    @property
    def seen(self) -> Path:
        """What the hook of the present life writes."""
        return self.home / f"{self.workdir.name}-{self.lives}"

    def start(self) -> subprocess.Popen[bytes]:
        """The next life."""
        self.lives += 1
        variables = environment(self.home) | {VARIABLE: Orders(str(self.seen)).to_text()}
        with self.log.open("ab") as log:
            return subprocess.Popen(self.words, env=variables, stdout=log, stderr=log)

    def finish(self) -> None:
        """A life until the end."""
        if status := self.start().wait():
            raise RuntimeError(f"status {status}: {self.log.read_text(errors='replace')[-2000:]}")

    def steps_seen(self) -> int:
        """Steps that the present life has begun."""
        try:
            return (self.seen / "batches-0.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def half_saved(self) -> bool:
        """Whether a checkpoint is being written, or was when the process was killed."""
        try:
            names = [path.name for path in (self.workdir / steps.FOLDER).iterdir()]
        except OSError:
            return False
        return any("tmp" in name for name in names)

    def saved(self) -> list[int]:
        """Steps of the whole checkpoints."""
        return steps.all_steps(self.workdir / steps.FOLDER)

    def losses(self) -> list[tuple[int, float | None, float | None]]:
        """Of all steps and evaluations."""
        lines = read_metrics(self.workdir / "metrics.jsonl")
        return [(line["step"], line.get("loss"), line.get("heldout_loss")) for line in lines]


def kill(run: Run, moment: str, rng: random.Random, start_s: float) -> bool:
    """Starts a life and kills it; whether a checkpoint was half written then.

    Args:
      run: what lives.
      moment: "before the first step", "in a step" or "in a save".
      rng: for the moment.
      start_s: what a life takes until its first step.
    """
    wanted = rng.randint(1, 2 * STEPS_OF_A_LIFE)
    delay_s = rng.uniform(
        0, {"before the first step": start_s, "in a save": 0.03}.get(moment, 0.02)
    )
    process = run.start()
    try:
        if moment != "before the first step":
            while run.steps_seen() < wanted or (moment == "in a save" and not run.half_saved()):
                if process.poll() is not None:
                    raise RuntimeError(f"ended by itself: {run.log.read_text()[-2000:]}")
                time.sleep(0.0005)
        time.sleep(delay_s)
    finally:
        process.kill()
        process.wait()
    return run.half_saved()


def check_life(run: Run, straight: Run, batches: dict[int, dict[str, str]]) -> int:
    """Compares what a life has read with the undisturbed run; the steps that it began.

    Raises:
      AssertionError: a lost, repeated or other batch, or another state.
    """
    found = read_batches(run.seen) if run.seen.is_dir() else {}
    restored = run.seen / "restored.json"
    if restored.is_file() and found:
        known = json.loads(restored.read_text())
        step = known["step"]
        assert list(found) == list(range(step + 1, step + 1 + len(found))), (step, list(found))
        if step:
            assert known["leaves"] == digests_of_checkpoint(straight.workdir, step)[1], step
    assert all(batches[step] == rows for step, rows in found.items())
    shutil.rmtree(run.seen, ignore_errors=True)
    return len(found)


def torture(home: Path, kills: int, seed: int = 0, steps: int | None = None) -> dict:
    """Kills a run of so many steps (left out: twenty a kill) so many times; what was seen.

    Raises:
      AssertionError: something differs from the undisturbed run.
    """
    total = kills * STEPS_OF_A_LIFE if steps is None else steps
    # The undisturbed run keeps all of its checkpoints, to be compared with.
    straight = Run(
        home, "straight", f"--config.train.steps={total}", "--config.checkpoint.keep=99999"
    )
    began = time.monotonic()
    straight.finish()
    straight_s = time.monotonic() - began
    batches = read_batches(straight.seen)
    assert list(batches) == list(range(1, total + 1))

    run = Run(home, "killed", f"--config.train.steps={total}")
    rng, newest, half, begun = random.Random(seed), 0, 0, 0
    moments: Counter[str] = Counter()
    for number in range(kills):
        others = "before the first step" if number % 8 == 0 else "in a step"
        moment = "in a save" if number % 2 else others
        half += kill(run, moment, rng, start_s=4.0)
        moments[moment] += 1
        begun += check_life(run, straight, batches)
        for step in run.saved():
            digests_of_checkpoint(run.workdir, step)  # each is read, whole
        kept = max(run.saved(), default=0)
        assert kept >= newest, f"step {newest} was there, and {kept} is the newest now"
        newest = kept
        if sys.stderr.isatty() or number % 10 == 9:
            print(f"{number + 1} of {kills} kills, step {newest} of {total}", file=sys.stderr)
    run.finish()
    begun += check_life(run, straight, batches)
    leaves = digests_of_checkpoint(straight.workdir)
    assert leaves[0] == total and digests_of_checkpoint(run.workdir) == leaves
    assert run.losses() == straight.losses()
    return {
        "kills": kills,
        "moments": dict(moments),
        "checkpoint_half_written_when_killed": half,
        "steps": total,
        "steps_begun_by_the_killed_run": begun,
        "leaves_of_the_last_checkpoint": len(leaves[1]),
        "losses_compared": len(straight.losses()),
        "different": 0,
        "straight_s": round(straight_s, 1),
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import jax

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llmasos-torture-") as folder:
        result = torture(Path(folder), args.kills, args.seed)
    result |= {"seed": args.seed, "s": round(time.monotonic() - began, 1)}
    result |= {"python": platform.python_version(), "jax": jax.__version__}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
