"""Sixteen points, four learning rates by four seeds: in one program, and each as a run of its own.

    python experiments/acceptance/sweep_together.py [--rounds=3]

Every round runs `llmasos sweep`'s job, then sixteen `llmasos.train` in processes of their own, and
compares all losses of all steps. Times are of the steps after the first one; start and compilation
stand apart. Writes sweep_together.json beside this file. About 3 minutes a round on two cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 100
FILE = """
METRIC = "loss"
from llmasos_jax.config.build import read_config
from llmasos_jax.sweep import grid


def get_config():
    config = read_config("tiny")
    config.train.steps = {steps}
    config.train.log_every_steps = 1
    config.train.eval_every_steps = None
    config.checkpoint.every_steps = None
    config.sample.prompt = None
    config.model.embedding_dim = {width}
    config.model.num_layers = 2
    config.model.num_heads = {width} // 16
    return config


def sweep(add):
    for point in grid({{"optim.learning_rate": [1e-3, 3e-3, 1e-2, 3e-2]}}):
        add(point, seeds=4)
"""
ALONE = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
import llmasos_jax
from llmasos_jax.config.files import cache_folder
from llmasos_jax.parallel.compile_cache import use_compile_cache
from llmasos_jax.train.hooks import Hook

class Clock(Hook):
    def on_step(self, step, values):
        self.last = time.perf_counter()
        if step == 1:
            self.first = self.last

clock = Clock()
use_compile_cache()
llmasos_jax.train(sys.argv[1], sys.argv[2], hooks=[clock])
print(json.dumps({"first_step_s": clock.first - start, "steps_s": clock.last - clock.first}))
"""


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def one_round(folder, width):
    """Seconds of both, and the largest relative difference of a loss."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    path, root = folder / "sweep.py", folder / "together"
    path.write_text(FILE.format(steps=STEPS, width=width))
    words = [sys.executable, "-m", "llmasos", "sweep", path, f"--workdir={root}"]
    start = time.perf_counter()
    subprocess.run(words, env=environment, check=True, capture_output=True)
    command_s = time.perf_counter() - start
    (timed,) = [json.loads(p.read_text()) for p in root.glob("groups/*/time.json")]
    alone, worst, commands_s, num_parameters = [], 0.0, 0.0, 0
    points = sorted((root / "points").iterdir())
    for point in points:
        own = folder / "alone" / point.name
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", ALONE, point / "config.json", own],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        commands_s += time.perf_counter() - start
        alone.append(json.loads(done.stdout.splitlines()[-1]))
        both = list(zip(losses(point), losses(own), strict=True))
        assert len(both) == STEPS
        worst = max(worst, *(abs(a - b) / abs(b) for a, b in both))
        said = next(line for line in done.stderr.splitlines() if "parameters" in line)
        num_parameters = int(said.split(":")[1].split()[0].replace(",", ""))
    alone_s = sum(found["steps_s"] for found in alone)
    return {
        "parameters": num_parameters,
        "runs": len(points),
        "steps": timed["steps"],
        "largest_relative_difference": worst,
        "together_steps_s": timed["steps_s"],
        "alone_steps_s": alone_s,
        "share": timed["steps_s"] / alone_s,
        "together_first_step_s": timed["first_step_s"],
        "alone_first_steps_s": sum(found["first_step_s"] for found in alone),
        "together_command_s": command_s,
        "alone_commands_s": commands_s,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    args = parser.parse_args()
    import jax

    rows = []
    for number in range(args.rounds):
        for width in args.widths:
            with tempfile.TemporaryDirectory(prefix="llmasos-sweep-") as folder:
                row = {"round": number, "width": width, **one_round(Path(folder), width)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    shares = {
        width: sorted(row["share"] for row in rows if row["width"] == width)
        for width in args.widths
    }
    result = {
        "asked": "losses within 1e-5 relative over 100 steps; steps in at most half of the time",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "median_share_by_width": {w: found[len(found) // 2] for w, found in shares.items()},
        "largest_relative_difference": max(row["largest_relative_difference"] for row in rows),
        "rounds": rows,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
