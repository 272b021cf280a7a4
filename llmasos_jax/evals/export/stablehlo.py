"""Exports to StableHLO, run by a fresh process that has jax and not this package."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ExportError, MissingExtraError
from llmasos_jax.evals.export import iree
from llmasos_jax.evals.export.ours import Outputs
from llmasos_jax.evals.export.target import Opened, Target, Tick
from llmasos_jax.evals.export.texts import compare_texts
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.cast import cast
from llmasos_jax.format.read import ModelFiles, read_model
from llmasos_jax.format.tensorfile import CODES
from llmasos_jax.interop.stablehlo.write import RUNNER, write_stablehlo
from llmasos_jax.interop.written import Written

# Only what the folder itself brings: with this package within reach a proof would prove less.
_CHILD = """
import sys
sys.modules["llmasos_jax"] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
import run
model = run.Model()
asked = np.load(sys.argv[2])
found = {}
if "prompt" in asked:
    found["ids"] = np.array(model.greedy(asked["prompt"].tolist(), int(asked["count"])))
for number in sorted({name.split()[0] for name in asked if " " in name}):
    of = {name.split()[1]: asked[name] for name in asked if name.split()[0] == number}
    for name, x in model.call("forward", **of).items():
        found[f"{number} {name}"] = np.asarray(x)
np.savez(sys.argv[3], **found)
"""


class StableHLO(Target):
    """Programs of `jax.export`; see `Target`."""

    name = "stablehlo"
    opens = "jax"
    packages: tuple[str, ...] = ("jaxlib", "ml_dtypes", *iree.PACKAGES)
    dtypes: tuple[str, ...] = tuple(CODES)
    second: str | None = "IREE"

    def check(self, files: ModelFiles, dtype: str | None) -> None:
        """Whatever runs here is written."""

    def check_runtime(self) -> None:
        """JAX is always there."""

    def write(self, files: ModelFiles, out: Path, dtype: str | None, on_tensor: Tick) -> Written:
        """Writes programs, weights and the script that runs them."""
        rounded = files if dtype is None else cast(files, dtype)
        return write_stablehlo(rounded, out, on_tensor=on_tensor)

    def bound(self, files: ModelFiles, dtype: str | None) -> float:
        """Both compute in float32."""
        return 1e-4

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> OpenedPrograms:
        """Each question starts a process of its own."""
        return OpenedPrograms(folder, cfg)

    def open_second(self, folder: Path, cfg: ModelConfig) -> Opened:
        """Compiles the programs for the sizes of the proof, where IREE is installed."""
        if not iree.is_installed():
            raise MissingExtraError(
                "IREE is not installed, so it was not tried; pip install 'llmasos-jax[export]'"
            )
        return iree.OpenedIree(folder, cfg, inputs_of)

    def back(self, folder: Path) -> ModelFiles:
        """The folder is a model of ours."""
        return read_model(folder, allow_code=True)

    def source(self, folder: Path) -> str | None:
        """The folder is a model of ours."""
        return str(folder)


def inputs_of(cfg: ModelConfig, probe: Probe) -> dict[str, np.ndarray]:
    """What `forward` reads of a probe, int32 arrays by names."""
    inputs = {"input_ids": probe.tokens_bt, "attention_mask": probe.mask_bt}
    if cfg.token_types:
        none_bt = np.zeros_like(probe.tokens_bt)
        inputs["token_type_ids"] = none_bt if probe.types_bt is None else probe.types_bt
    if cfg.encoder.num_layers:
        inputs["decoder_input_ids"] = probe.tokens_bt[:, ::-1]
    return {name: x.astype(np.int32) for name, x in inputs.items()}


class OpenedPrograms(Opened):
    """Programs run by the script beside them; see `Opened`."""

    pad_id: int | None = None

    def __init__(self, folder: Path, cfg: ModelConfig) -> None:
        self._folder, self._cfg = folder, cfg

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """Runs `forward` on each probe."""
        asked = {}
        for number, probe in enumerate(probes):
            inputs = inputs_of(self._cfg, probe)
            asked |= {f"{number} {name}": x for name, x in inputs.items()}
        given = self._ask(asked)
        return [
            {name.split()[1]: x for name, x in given.items() if name.split()[0] == str(number)}
            for number in range(len(probes))
        ]

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """Runs `step`, first on the prompt and then on each token."""
        asked = {"prompt": np.array(prompt_ids), "count": np.array(count)}
        return self._ask(asked)["ids"].tolist()

    def check_texts(self, tokenizer: Tokenizer, cfg: ModelConfig) -> int:
        """The folder is a model of ours: what this package reads in it gives the same ids."""
        theirs = read_model(self._folder, allow_code=True).tokenizer
        return 0 if theirs is None else compare_texts(tokenizer, theirs.load(), cfg)

    def _ask(self, asked: Mapping[str, np.ndarray]) -> Outputs:
        with tempfile.TemporaryDirectory() as name:
            question, answer = Path(name, "asked.npz"), Path(name, "found.npz")
            np.savez(question, **dict(asked))  # pyright: ignore[reportArgumentType]
            # -B: what is imported from the folder leaves no bytecode in it.
            files = map(str, (self._folder, question, answer))
            command = [sys.executable, "-B", "-c", _CHILD, *files]
            kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            # On this machine's CPU whatever accelerator it has: products are float32 there.
            done = subprocess.run(
                command, capture_output=True, text=True, env={**kept, "JAX_PLATFORMS": "cpu"}
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                raise ExportError(f"{RUNNER} does not run what was written: {lines[-1][:300]}")
            with np.load(answer) as found:
                return dict(found)
