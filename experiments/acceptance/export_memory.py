"""Peak memory of writing a model of some GB in each format, beside its largest tensor.

    export JAX_PLATFORMS=cpu
    python experiments/acceptance/export_memory.py                          # 2.4 GB
    python experiments/acceptance/export_memory.py --layers=28 --as-it-is  # 7.8 GB

A decoder of width 2048 with random float32 weights, written tensor by tensor. Each export runs in a
process of its own, unproven, for a proof loads the model as its program does. What is said is the
largest resident set of that process, by Linux's own count, less what it had when everything was
imported. Figures go to `export_memory.json` beside this file. Expected: at most 2 GB above the
largest tensor, whatever the model's size.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.format.write import write_model

OUT = Path(__file__).with_suffix(".json")
CASES = (("hf", None), ("gguf", None), ("gguf", "Q8_0"), ("gguf", "Q4_K"), ("onnx", None))
CASES += (("stablehlo", None), ("hf", "bfloat16"))
LIMIT = 2.0  # GB above the largest tensor


def make(folder: Path, cfg: ModelConfig) -> int:
    """Writes the model; gives the bytes of its largest tensor."""
    tensors = {}
    for number, (name, spec) in enumerate(expected(cfg).items()):

        def read(shape: tuple[int, ...] = spec.shape, seed: int = number) -> np.ndarray:
            rng = np.random.default_rng(seed)
            return rng.standard_normal(shape, np.float32) * np.float32(0.02)

        tensors[name] = StoredTensor(spec.shape, "float32", read)
    write_model(folder, Manifest("large", cfg), tensors)
    return max(tensor.nbytes for tensor in tensors.values())


def child(model: str, out: str, to: str, dtype: str | None) -> None:
    """Exports a tiny model, which imports everything, then the large one; prints what it took."""
    import llmasos_jax

    tiny = Path(out).with_name("tiny")
    make(tiny, ModelConfig(64, 64, 1, context_length=32))
    llmasos_jax.export(tiny, to, tiny.with_name("tiny-out"), dtype=dtype, unproven=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_kb("VmRSS")
    start = time.monotonic()
    result = llmasos_jax.export(model, to, out, dtype=dtype, unproven=True)
    seconds = time.monotonic() - start
    found = {"before_kb": before, "peak_kb": resident_kb("VmHWM"), "seconds": seconds}
    print(json.dumps(found | {"bytes": result.num_bytes}))


def resident_kb(name: str) -> int:
    """The resident set now (VmRSS) or at its largest (VmHWM); of files that are mapped too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> int:
    """Runs all cases; exit status 1 where one takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--as-it-is", action="store_true", help="no type but the model's own")
    parser.add_argument("--child", nargs=4, metavar=("MODEL", "OUT", "TO", "DTYPE"))
    args = parser.parse_args()
    if args.child:
        model, out, to, dtype = args.child
        child(model, out, to, None if dtype == "own" else dtype)
        return 0
    wide = {"ffn_dim": 4 * args.width, "num_heads": args.width // 64, "context_length": 512}
    cfg = ModelConfig(32_000, args.width, args.layers, **wide)
    rows, status = [], 0
    with tempfile.TemporaryDirectory() as parent:
        largest = make(Path(parent, "model"), cfg)
        size = sum(p.stat().st_size for p in Path(parent, "model").iterdir())
        for to, dtype in CASES:
            if dtype and args.as_it_is:
                continue
            with tempfile.TemporaryDirectory(dir=parent) as name:
                words = [str(Path(parent, "model")), str(Path(name, "out")), to, dtype or "own"]
                done = subprocess.run(
                    [sys.executable, __file__, "--child", *words],
                    **{"capture_output": True, "text": True, "check": True},
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            found = json.loads(done.stdout.splitlines()[-1])
            above = (found["peak_kb"] - found["before_kb"]) * 1024
            rows.append(
                {
                    **{"to": to, "dtype": dtype or "its own", "peak_gb": above / 1e9},
                    "above_largest_tensor_gb": (above - largest) / 1e9,
                    "seconds": round(found["seconds"], 1),
                }
            )
            status |= rows[-1]["above_largest_tensor_gb"] > LIMIT
            print(json.dumps(rows[-1]), flush=True)
    stored = json.loads(OUT.read_text()) if OUT.exists() else {}
    record = {"model_gb": size / 1e9, "largest_tensor_gb": largest / 1e9, "exports": rows}
    OUT.write_text(json.dumps(stored | {f"{args.layers} layers": record}, indent=1) + "\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
