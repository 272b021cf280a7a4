"""Every format into every other and back: which tensors are the same bits, and what is lost.

A tiny model of each family with random weights, and two real ones (SmolLM2-135M-Instruct,
all-MiniLM-L6-v2). A tiny model is written from each of LLMasOS, Orbax (a training checkpoint),
Hugging Face, GGUF and ONNX to each of these, and to StableHLO; a real one from LLMasOS to each and
back. Of each tensor the sha256 before and after is compared, and the two configs. Then the types
that round: how far the weights are from the model's.

    JAX_PLATFORMS=cpu python experiments/acceptance/round_trips.py                # all, minutes
    JAX_PLATFORMS=cpu python experiments/acceptance/round_trips.py LLaMA "real "  # some
    JAX_PLATFORMS=cpu python experiments/acceptance/round_trips.py --page         # docs alone

Figures go to `round_trips.json` beside this file, the page `docs/round_trips.md` is made of them.
Expected: no pair differs; exit status 1 where one does. Needs the extras `parity` and `export`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from round_trip_models import orbax_run, real_models, tiny_models
from round_trip_page import PAGE, page

from llmasos_jax.errors import LLMasOSError
from llmasos_jax.evals.export.targets import TABLE
from llmasos_jax.evals.export.weights import compare_stored
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.write import write_model
from llmasos_jax.hub.open import open_model
from llmasos_jax.interop.gguf.write_config import config_differences, folded
from llmasos_jax.interop.hf.express import differences

OUT = Path(__file__).with_suffix(".json")
OWN = ("llmasos", "orbax")
FORMATS = (*OWN, "hf", "gguf", "onnx", "stablehlo")
ROUNDING = [
    *((to, dtype) for to in ("hf", "onnx", "stablehlo") for dtype in ("bfloat16", "float16")),
    *(("gguf", d) for d in ("BF16", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0")),
    *(("gguf", d) for d in ("Q4_K", "Q4_1", "Q4_0")),
]


def write(to: str, files: ModelFiles, folder: Path, dtype: str | None = None) -> None:
    """Writes a model in a format, unproven."""
    if to == "llmasos":
        write_model(folder, files.manifest, files.tensors, files.tokenizer)
    elif to == "orbax":
        orbax_run(files, folder)
    else:
        TABLE[to].check(files, dtype)
        folder.mkdir()
        TABLE[to].write(files, folder, dtype, lambda name, size: None)


def hashes(files: ModelFiles) -> dict[str, str]:
    """The sha256 of each tensor: its dtype, shape and bytes."""
    found = {}
    for name, tensor in files.tensors.items():
        array = np.ascontiguousarray(tensor.read())
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
        found[name] = digest.hexdigest()
    return found


def pair(a: ModelFiles, to: str, folder: Path) -> dict[str, Any]:
    """Writes a model in a format, opens it, and compares every tensor and the config."""
    try:
        write(to, a, folder)
    except LLMasOSError as error:
        return {"refused": str(error)}
    b = open_model(folder)
    one, two = a.manifest.parameters, b.manifest.parameters
    unlike = config_differences(folded(one), two) if to == "gguf" else differences(one, two)
    before, after = hashes(a), hashes(b)
    wrong = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return {"tensors": len(before), "wrong": wrong, "config": unlike}


def trips(files: ModelFiles, folder: Path, *, is_small: bool) -> dict[str, Any]:
    """All pairs of a small model; of a large one those from and to LLMasOS."""
    found: dict[str, Any] = {}
    opened = {"llmasos": files}
    for a in FORMATS[:-1]:
        if a not in opened:
            continue
        for to in FORMATS:
            if a == to and a != "llmasos":
                continue
            if a != "llmasos" and (to == "stablehlo" or not (is_small or to == "llmasos")):
                continue
            place = folder / f"{a}-{to}"
            start = time.monotonic()
            said = found[f"{a} -> {to}"] = pair(opened[a], to, place)
            said["seconds"] = round(time.monotonic() - start, 2)
            if a == "llmasos" and "refused" not in said and to not in opened:
                opened[to] = open_model(place)
    return found


def rounded(files: ModelFiles, folder: Path) -> dict[str, Any]:
    """What each type does to the weights: the worst tensor, and all numbers together."""
    found = {}
    for to, dtype in ROUNDING:
        target, place = TABLE[to], folder / f"{to}-{dtype}"
        try:
            write(to, files, place, dtype)
        except LLMasOSError:
            continue
        said, held = target.said(files), target.stored(place)
        result = compare_stored(said, held, dtype, target.opens)
        apart, whole = 0.0, 0.0
        for name, tensor in said.tensors.items():
            x = np.asarray(tensor.read()).astype(np.float64)
            apart += float(np.square(np.asarray(held[name]).astype(np.float64) - x).sum())
            whole += float(np.square(x).sum())
        found[f"{to} {dtype}"] = {
            "worst_tensor": result.worst,
            "where": result.where,
            "all": (apart / whole) ** 0.5,
            "tensors": result.tensors,
            "bytes": sum(p.stat().st_size for p in place.iterdir() if p.stat().st_size > 2**16),
        }
        shutil.rmtree(place)
    return found


def report(name: str, files: ModelFiles, *, is_small: bool) -> dict[str, Any]:
    """Everything about one model."""
    with tempfile.TemporaryDirectory() as parent:
        own = Path(parent, "own")
        write_model(own, files.manifest, files.tensors, files.tokenizer)
        files = open_model(own)
        digests = "".join(sorted(f"{n} {h}\n" for n, h in hashes(files).items()))
        found = {
            "family": files.manifest.architecture,
            "parameters": files.num_parameters,
            "dtype": sorted({t.dtype for t in files.tensors.values()}),
            "sha256": hashlib.sha256(digests.encode()).hexdigest(),
            "pairs": trips(files, Path(parent), is_small=is_small),
        }
        if not is_small or name == "SmolLM smollm2-135m":
            found["rounded"] = rounded(files, Path(parent))
    return found


def is_wrong(found: dict[str, Any]) -> bool:
    """Whether a pair lost something and did not say so before."""
    return any(p.get("wrong") or p.get("config") for p in found["pairs"].values())


def main() -> int:
    """Runs the models that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="families, or parts of names; none takes all")
    parser.add_argument("--page", action="store_true", help="make the page of the figures there")
    parser.add_argument("--real", nargs="*", default=None, help="NAME=SOURCE of the real models")
    args = parser.parse_args()
    record = json.loads(OUT.read_text()) if OUT.is_file() else {}
    models = {} if args.page else tiny_models() | real_models(args.real)
    status = 0
    for name, make in models.items():
        if args.only and not any(part in name for part in args.only):
            continue
        start = time.monotonic()
        found = report(name, make(), is_small=not name.startswith("real "))
        record.setdefault("models", {})[name] = found
        record["versions"] = {p: version(p) for p in ("jax", "numpy", "onnx", "orbax-checkpoint")}
        OUT.write_text(json.dumps(record, indent=1) + "\n")
        status |= is_wrong(found)
        refused = sum("refused" in p for p in found["pairs"].values())
        print(
            f"{name}: {len(found['pairs'])} pairs, {refused} refused, "
            f"{'WRONG' if is_wrong(found) else 'the rest equal'}, {time.monotonic() - start:.1f} s",
            flush=True,
        )
    PAGE.write_text(page(record), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
