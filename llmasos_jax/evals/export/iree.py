"""Exports to StableHLO, compiled and run by IREE: a second program beside jax.

IREE compiles for sizes that are known, so each program of the export is taken as it lies in the
folder and specialised to the sizes of the proof.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ExportError
from llmasos_jax.evals.export.ours import Outputs
from llmasos_jax.evals.export.target import Opened
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.read import read_model
from llmasos_jax.interop.stablehlo.program import ENCODE, FORWARD, STEP
from llmasos_jax.interop.stablehlo.write import ABOUT

PACKAGES = ("iree-base-compiler", "iree-base-runtime")
MOST_S = 600  # that IREE may compile a program, or run it
_LINE = 300  # characters of what it said


def is_installed() -> bool:
    """Whether IREE's compiler and its runtime are both there."""
    try:
        return all(importlib.util.find_spec(f"iree.{n}") for n in ("compiler", "runtime"))
    except ModuleNotFoundError:  # there is no `iree` at all
        return False


class OpenedIree(Opened):
    """An export's programs in IREE on the CPU; see `Opened`. Refuses by ExportError.

    Args:
      folder: the export.
      cfg: the model.
      inputs_of: what `forward` reads of a probe, by names.
    """

    pad_id: int | None = None

    def __init__(self, folder: Path, cfg: ModelConfig, inputs_of: Any) -> None:
        self._folder, self._cfg, self._inputs_of = folder, cfg, inputs_of
        self._about = json.loads((folder / ABOUT).read_bytes())
        tensors = read_model(folder, allow_code=True).tensors
        self._weights = {n: jax.ShapeDtypeStruct(t.shape, t.dtype) for n, t in tensors.items()}
        self._kept = tempfile.TemporaryDirectory()
        self._compiled: dict[str, dict[str, Any]] = {}

    def close(self) -> None:
        """Takes the compiled programs away."""
        self._kept.cleanup()

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """Runs `forward`, compiled once for each shape of the probes."""
        arrays, programs = {}, {}
        for number, probe in enumerate(probes):
            b, t = probe.tokens_bt.shape
            programs[f"{FORWARD} {number}"] = self._program(FORWARD, b=b, t=t, e=t)
            arrays |= {f"{number} {n}": x for n, x in self._inputs_of(self._cfg, probe).items()}
        given = self._ask("forward", programs, arrays)
        return [
            {name.split()[1]: x for name, x in given.items() if name.split()[0] == str(number)}
            for number in range(len(probes))
        ]

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """Runs `step`, one id at a time from the first."""
        length = len(prompt_ids)
        # One size for every prompt of a proof, so that it is compiled once.
        slots = 1 << (length + count - 1).bit_length()
        sizes = {"b": 1, "t": 1, "s": slots, "e": slots}
        programs = {STEP: self._program(STEP, **sizes)}
        arrays = {n: np.zeros(x.shape, x.dtype) for n, x in self._inputs(STEP, sizes).items()}
        del arrays["input_ids"]
        arrays |= {"length": np.full_like(arrays["length"], length), "count": np.array(count)}
        arrays["prompt"] = np.array(prompt_ids)
        if ENCODE in self._about["programs"]:
            programs[ENCODE] = self._program(ENCODE, **sizes)
            ids_bt, mask_bt = np.zeros((2, 1, slots), np.int32)
            ids_bt[0, :length], mask_bt[0, :length] = prompt_ids, 1
            start = self._about["decoder_start_id"]
            arrays |= {"source_ids": ids_bt, "source_mask": mask_bt, "prompt": np.array([start])}
            arrays = {n: x for n, x in arrays.items() if not n.startswith("cross.")}
        return self._ask("greedy", programs, arrays)["ids"].tolist()

    def check_texts(self, tokenizer: Tokenizer, cfg: ModelConfig) -> int:
        """IREE has no tokenizer."""
        return 0

    def _inputs(self, name: str, sizes: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
        size = lambda dim: math.prod(int(sizes.get(part, part)) for part in str(dim).split("*"))
        return {
            n: jax.ShapeDtypeStruct(tuple(map(size, x["shape"])), x["dtype"])
            for n, x in self._about["programs"][name]["inputs"].items()
        }

    def _program(self, name: str, **sizes: int) -> dict[str, Any]:
        """A program compiled for these sizes: its file, what it reads and gives by names."""
        key = f"{name}-{'-'.join(f'{k}{n}' for k, n in sizes.items())}"
        if key not in self._compiled:
            about, file = self._about["programs"][name], Path(self._kept.name, key)
            whole = export.deserialize(bytearray((self._folder / about["file"]).read_bytes()))
            text = specialised(whole, self._weights, self._inputs(name, sizes))
            file.with_suffix(".mlir").write_text(text, encoding="utf-8")
            _compile(name, file.with_suffix(".mlir"), file.with_suffix(".vmfb"))
            self._compiled[key] = {
                **{"file": str(file.with_suffix(".vmfb"))},
                **{"inputs": sorted(about["inputs"]), "outputs": sorted(about["outputs"])},
            }
        return self._compiled[key]

    def _ask(
        self, kind: str, programs: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> Outputs:
        with tempfile.TemporaryDirectory() as name:
            asked = {"kind": kind, "folder": str(self._folder), "programs": programs}
            Path(name, "asked.json").write_text(json.dumps(asked), encoding="utf-8")
            np.savez(Path(name, "asked.npz"), **dict(arrays))  # pyright: ignore[reportArgumentType]
            command = [sys.executable, "-m", "llmasos_jax.evals.export.iree_child", name]
            said = _run(command, "does not run")
            try:
                with np.load(Path(name, "found.npz")) as found:
                    return dict(found)
            except OSError as error:
                raise ExportError(f"IREE ended without an answer: {said}") from error


def specialised(
    program: export.Exported,
    weights: Mapping[str, jax.ShapeDtypeStruct],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> str:
    """A program for sizes that are known, as text of StableHLO whose `main` takes flat arguments.

    Args:
      program: of an export.
      weights: shapes and dtypes by names.
      inputs: the same of what it reads; they say the sizes.
    """
    # What jax does itself with such a program before it compiles it; it has no public name.
    try:
        from jax._src.interpreters.mlir import refine_polymorphic_shapes
    except ImportError as error:
        raise ExportError(
            f"jax {jax.__version__} no longer specialises programs ({error})"
        ) from error

    called = jax.jit(program.call, keep_unused=True)
    lowered = called.trace(dict(weights), dict(inputs)).lower(lowering_platforms=("cpu",))
    module = lowered.compiler_ir("stablehlo")
    if module is None:
        raise ExportError("jax gives no StableHLO of the program")
    return str(refine_polymorphic_shapes(module))


def _compile(name: str, source: Path, out: Path) -> None:
    from iree.compiler.tools.binaries import find_tool  # pyright: ignore[reportMissingImports]

    command = [
        find_tool("iree-compile"),
        str(source),
        "--iree-input-type=stablehlo",
        "--iree-hal-target-backends=llvm-cpu",
        "--iree-llvmcpu-target-cpu=host",
        f"--iree-llvmcpu-embedded-linker-path={find_tool('iree-lld')}",
        "--mlir-print-op-on-diagnostic=false",
        f"-o={out}",
    ]
    _run(command, f'does not compile "{name}"')


def _run(command: Sequence[str], what: str) -> str:
    path = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOST_S,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"IREE {what} in {MOST_S} s") from error
    if done.returncode:
        raise ExportError(f"IREE {what}: {_first_error(done.stderr, done.returncode)}")
    return done.stderr.strip()[-_LINE:]


def _first_error(text: str, status: int) -> str:
    """The first line that names an error, else the last, which is that of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return (named[:1] or lines[-1:] or [f"it ended with status {status}"])[0][:_LINE]
