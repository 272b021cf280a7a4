"""A sweep killed three times at random moments and continued is the sweep that nobody disturbed.

    python experiments/acceptance/sweep_killed.py [--rounds=3] [--seed=0]

Twelve points in three programs. Each round picks three moments, each 5 to 30% of the undisturbed
run's time after a start, and what is hit there: the sweep (SIGKILL or SIGTERM), or its job
(SIGKILL). Then the same command goes on to the end. Compares the report's table and every logged
loss, bit for bit, and sees that no result that was there has been written again. Writes
sweep_killed.json beside this file. About a minute a round on two quiet cores.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILE = '''"""Which rate, and which MLP?"""

from llmasos_jax.sweep import grid

CONFIG = "tiny"


def sweep(add):
    usual = {"optim.learning_rate": 1e-3, "model.mlp": "relu"}
    mlps = ["swiglu", "relu", "gelu"]
    for point in grid({"optim.learning_rate": [1e-3, 3e-3], "model.mlp": mlps}):
        add(point, seeds=2, baseline=point == usual)
'''
OPTIONS = (
    "--config.train.steps=400",
    "--config.train.log_every_steps=1",
    "--config.data.max_documents=8",
    "--config.train.eval_every_steps=100",
    "--config.checkpoint.every_steps=50",
)
HITS = {
    "sweep, SIGKILL": ("sweep", signal.SIGKILL),
    "sweep, SIGTERM": ("sweep", signal.SIGTERM),
    "job, SIGKILL": ("job", signal.SIGKILL),
}


class Sweep:
    """The command, in a folder."""

    def __init__(self, home, name):
        self.folder, self.log = home / name, home / f"{name}.log"
        self.words = [sys.executable, "-m", "llmasos", "sweep", str(home / "sweep.py")]
        self.words += [f"--workdir={self.folder}", *OPTIONS]
        self.environment = os.environ | {"XDG_CACHE_HOME": str(home / "cache")}
        self.environment |= {"JAX_PLATFORMS": "cpu"}

    def start(self):
        """Its process."""
        with self.log.open("ab") as log:
            return subprocess.Popen(self.words, env=self.environment, stdout=log, stderr=log)

    def jobs(self):
        """Numbers of its jobs' processes."""
        words = ["pgrep", "-f", f"llmasos_jax.sweep.job {self.folder} "]
        return [int(n) for n in subprocess.run(words, capture_output=True).stdout.split()]

    def results(self):
        """When each result was written."""
        return {p: p.stat().st_mtime_ns for p in self.folder.glob("points/*/result.json")}

    def table(self):
        """What the report says of each setting, without times and places."""
        kept = ("rank", "setting", "summary", "test", "p_holm", "verdict", "tokens")
        report = json.loads((self.folder / "report.json").read_text())
        return [{name: row[name] for name in kept} for row in report["settings"]]

    def losses(self):
        """(step, loss) of each point."""
        found = {}
        for path in sorted(self.folder.glob("points/*/metrics.jsonl")):
            lines = map(json.loads, path.read_text().splitlines())
            found[path.parent.name] = [(x["step"], x["loss"]) for x in lines if "loss" in x]
        return found


def hit(sweep, after_s, target, number):
    """Starts the sweep, and kills it or its job; what was done before, and how the sweep ended."""
    before = sweep.results()
    process = sweep.start()
    time.sleep(after_s)
    victims = [process.pid] if target == "sweep" else sweep.jobs()
    while not victims and process.poll() is None:
        victims = sweep.jobs()
    for victim in victims[:1]:
        os.kill(victim, number)
    status = process.wait(300)
    while sweep.jobs():  # a job whose sweep is gone saves and ends
        time.sleep(0.1)
    after = sweep.results()
    assert all(after[path] == at for path, at in before.items()), "a result was written again"
    return len(after), status


def one_round(home, straight, straight_s, name, draw):
    sweep, kills = Sweep(home, name), []
    for _ in range(3):
        what, after_s = draw.choice([*HITS]), draw.uniform(0.05, 0.3) * straight_s
        done, status = hit(sweep, after_s, *HITS[what])
        kills.append({"what": what, "after_s": round(after_s, 2), "done": done, "status": status})
    before = sweep.results()
    status = sweep.start().wait(600)
    after = sweep.results()
    return {
        "kills": kills,
        "status": status,
        "same_table": sweep.table() == straight.table(),
        "same_losses": sweep.losses() == straight.losses(),
        "done_before_the_last_call": len(before),
        "written_again": sum(after[path] != at for path, at in before.items()),
    }


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import jax

    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="llmasos-killed-") as folder:
        home = Path(folder)
        (home / "sweep.py").write_text(FILE)
        straight = Sweep(home, "straight")
        start = time.perf_counter()
        assert straight.start().wait(600) == 0, straight.log.read_text()
        straight_s = time.perf_counter() - start
        rounds = []
        for number in range(args.rounds):
            rounds.append(one_round(home, straight, straight_s, f"round{number}", draw))
            print(json.dumps(rounds[-1]), flush=True)
        losses = straight.losses()
    result = {
        "asked": "killed three times at random and continued: the same table, nothing repeated",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "seed": args.seed,
        "points": len(losses),
        "losses": sum(map(len, losses.values())),
        "undisturbed_s": round(straight_s, 1),
        "rounds": rounds,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    good = all(r["same_table"] and r["same_losses"] and not r["written_again"] for r in rounds)
    print(f"wrote {path}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
