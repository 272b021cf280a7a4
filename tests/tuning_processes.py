"""Real processes of `llmasos finetune`, stopped by signals, and what their folders hold."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from commands import environment
from small_model import small_model

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.train.hooks import read_metrics

BASE = ModelConfig(320, 64, 2, context_length=128, num_heads=4, num_kv_heads=2, ffn_dim=128)
CONFIG = """
from llmasos_jax.config.build import default_config


def get_config(variant=""):
    c = default_config()
    c.finetune.base = "{base}"
    c.finetune.rank = 4
    c.objective.name = variant or "sft"
    c.data.source = "jsonl"
    c.data.path = "{folder}/" + ("pairs.jsonl" if variant == "dpo" else "answers.jsonl")
    c.data.sequence_length = 64
    c.data.heldout_fraction = 0.2
    c.train.steps = 12
    c.train.batch_size = 8
    c.train.log_every_steps = 1
    c.train.eval_every_steps = 4
    c.train.dropout_rate = 0.1
    c.optim.learning_rate = 1e-2
    c.optim.warmup_steps = 2
    c.checkpoint.every_steps = 4
    return c
"""


def prepare(folder: Path, base: str | None = None, pairs: int = 40) -> None:
    """Writes answers, preferences and the config; makes the base where none is named."""
    folder.mkdir(parents=True, exist_ok=True)
    if base is None:
        small_model(BASE).save(folder / "base")
    rng = random.Random(0)
    with open(folder / "answers.jsonl", "w") as answers, open(folder / "pairs.jsonl", "w") as both:
        for i in range(pairs):
            words = [rng.choice(["blue", "red", "round", "flat", "7"]) for _ in range(3)]
            prompt = f"Q{i}: "
            row = {"prompt": prompt, "completion": " ".join(words)}
            pair = {"prompt": prompt, "chosen": " ".join(words[:2]), "rejected": words[2] + "?"}
            answers.write(json.dumps(row) + "\n")
            both.write(json.dumps(pair) + "\n")
    text = CONFIG.format(folder=folder, base=base or folder / "base")
    (folder / "tune.py").write_text(text)


class Tuning:
    """One training folder, and the command that trains in it, started as often as asked.

    Args:
      folder: from `prepare`.
      workdir: name of the training folder in `folder`.
      objective: "sft" or "dpo".
      options: more of the command line.
      home: where caches go, `folder` if None; what another run has cached is not there.
      quick: compiles fast and computes slowly.
    """

    def __init__(
        self,
        folder: Path,
        workdir: str,
        objective: str = "sft",
        options: Sequence[str] = (),
        home: Path | None = None,
        *,
        quick: bool = False,
    ) -> None:
        self.workdir, self.home = folder / workdir, home or folder
        self.home.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{workdir}.log"
        flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0"} if quick else {}
        self.variables = environment(self.home) | flags
        self.words = [
            *(sys.executable, "-m", "llmasos", "finetune"),
            *(f"--config={folder}/tune.py:{objective}", f"--workdir={self.workdir}", *options),
        ]

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the command; what it says is added to `log`."""
        with open(self.log, "ab") as file:
            return subprocess.Popen(
                self.words,
                cwd=self.home,
                env=self.variables,
                stdout=file,
                stderr=file,
            )

    def finish(self) -> int:
        """Runs the command to its end; its exit status."""
        process = self.start()
        try:
            return process.wait(600)
        finally:
            process.kill()
            process.wait()

    def stop(
        self,
        is_time: Callable[[Tuning], bool],
        number: int = signal.SIGKILL,
        timeout_s: float = 300,
    ) -> int:
        """Starts the command and sends it a signal when `is_time`; its exit status.

        Raises:
          RuntimeError: it ended by itself before.
        """
        process, until_s = self.start(), time.monotonic() + timeout_s
        try:
            while not is_time(self):
                if process.poll() is not None or time.monotonic() > until_s:
                    raise RuntimeError(f"it ended before it was stopped:\n{self.said()}")
                time.sleep(0.0005)
            process.send_signal(number)
            return process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()

    def said(self) -> str:
        """All that the processes have said."""
        return self.log.read_text(errors="replace")

    def step(self) -> int:
        """The newest step whose values are in `metrics.jsonl`; 0 for none."""
        try:
            lines = (self.workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        except OSError:
            return 0
        whole = [json.loads(line)["step"] for line in lines if line.endswith(b"\n")]
        return max(whole, default=0)

    def saved(self) -> list[int]:
        """Steps of the whole checkpoints."""
        return steps.all_steps(self.workdir / steps.FOLDER)

    def half_saved(self) -> list[str]:
        """Names of the checkpoints that are being written, or were when the process ended."""
        try:
            names = [path.name for path in (self.workdir / steps.FOLDER).iterdir()]
        except OSError:
            return []
        return sorted(name for name in names if "tmp" in name)

    def references(self) -> list[str]:
        """Files of what the base says of preferences."""
        return sorted(path.name for path in self.home.glob("cache/**/reference-*.npz"))

    def losses(self) -> dict[tuple[int, str], float]:
        """Losses of all steps and evaluations, by step and name."""
        lines = read_metrics(self.workdir / "metrics.jsonl")
        names = ("loss", "heldout_loss", "grad_norm")
        return {
            (line["step"], name): line[name] for line in lines for name in names if name in line
        }

    def leaves(self) -> Iterator[tuple[str, str]]:
        """Name and hash of each array of the newest checkpoint, of its bits, type and shape."""
        state = StoredState(self.workdir)
        yield "step", str(state.step)
        for name in sorted(state.leaves):
            array = state.read(name)
            what = f"{state.leaves[name]}".encode()
            yield name, hashlib.sha256(what + array.tobytes()).hexdigest()


def after_step(step: int, later_s: float = 0.0) -> Callable[[Tuning], bool]:
    """When a step's values were written, so while the next one computes."""
    seen_s: list[float] = []

    def is_time(run: Tuning) -> bool:
        if not seen_s and run.step() >= step:
            seen_s.append(time.monotonic())
        return bool(seen_s) and time.monotonic() >= seen_s[0] + later_s

    return is_time


def while_saving(step: int) -> Callable[[Tuning], bool]:
    """When a part of this step's checkpoint is on disk, and it is not whole."""
    return lambda run: any(name.startswith(f"{step}.") for name in run.half_saved())


def has_made(name: str) -> Callable[[Tuning], bool]:
    """When a file is in the training folder."""
    return lambda run: (run.workdir / name).exists()


def in_the_reference_pass(later_s: float) -> Callable[[Tuning], bool]:
    """So long after the pairs were tokenised, which is when the base begins to score them."""
    seen_s: list[float] = []

    def is_time(run: Tuning) -> bool:
        if not seen_s and any(run.home.glob("cache/llmasos/data/records-*/ids.npz")):
            seen_s.append(time.monotonic())
        return bool(seen_s) and time.monotonic() >= seen_s[0] + later_s

    return is_time
