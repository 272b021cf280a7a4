"""Writes a model as StableHLO: programs, what they read, weights, and a script that runs them.

The folder is an LLMasOS model as well, so that this package opens it like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.write import fill_folder, write_file
from llmasos_jax.interop.stablehlo.program import PLATFORMS, export_programs
from llmasos_jax.interop.written import Written

ABOUT, RUNNER = "stablehlo.json", "run.py"
VERSION = "1"  # of stablehlo.json


def write_stablehlo(
    files: ModelFiles, out: Path, *, on_tensor: Callable[[str, int], None] | None = None
) -> Written:
    """Writes programs for CPU, CUDA and TPU beside the weights. Its memory is the largest tensor.

    Args:
      files: the model.
      out: an empty folder.
      on_tensor: called with the name and size in bytes of each tensor written.
    """
    cfg = files.manifest.parameters
    programs = export_programs(cfg, {name: t.dtype for name, t in files.tensors.items()})
    fill_folder(out, files.manifest, files.tensors, files.tokenizer, on_tensor=on_tensor)
    about: dict[str, Any] = {
        "version": VERSION,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "sizes": {"b": "rows", "t": "tokens", "s": "slots", "e": "tokens of the encoder"},
        "decoder_start_id": files.manifest.generation.decoder_start_id,
        "programs": {},
    }
    for name, program in programs.items():
        file = f"{name}.jax_export"
        write_file(out / file, bytes(program.serialize()))
        _, inputs = jax.tree.unflatten(program.in_tree, program.in_avals)[0]
        outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
        about["programs"][name] = {
            "file": file,
            "inputs": _described(inputs),
            "outputs": _described(outputs),
        }
        about["calling_convention"] = program.calling_convention_version
    write_file(out / ABOUT, (json.dumps(about, indent=1) + "\n").encode("utf-8"))
    runner = resources.files("llmasos_jax.interop.stablehlo") / "runner.py"
    write_file(out / RUNNER, runner.read_bytes())
    num_bytes = sum(tensor.nbytes for tensor in files.tensors.values())
    what = f"StableHLO by jax.export ({', '.join(programs)}) for {', '.join(PLATFORMS)}"
    others = " and ".join(name for name in PLATFORMS if name != "cpu")
    note = f"programs for {others} are in the same files; a proof runs those for the CPU alone"
    return Written(what, len(files.tensors), num_bytes, (note,))


def _described(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes by names; a size is a number, a symbol, or a product of them."""
    return {
        name: {
            "shape": [dim if isinstance(dim, int) else str(dim) for dim in x.shape],
            "dtype": str(x.dtype),
        }
        for name, x in arrays.items()
    }
