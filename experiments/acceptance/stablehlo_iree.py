"""Exports to StableHLO in IREE: tiny models of every family, and SmolLM2-135M-Instruct.

Each export is proven by jax and then by IREE: its own programs, specialised to the sizes of the
proof, compiled for this CPU, run on the same batches and prompts. Figures go to
`stablehlo_iree.json` beside this file:

    python experiments/acceptance/stablehlo_iree.py                    # tiny, fifteen minutes
    python experiments/acceptance/stablehlo_iree.py LLaMA BERT         # families by name
    python experiments/acceptance/stablehlo_iree.py --model=smollm2-135m-instruct

Expected: each is proven, with differences below 2e-5 of the largest number; or the line says what
IREE does not compile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from round_trip_models import tiny_models

from llmasos_jax.evals.export.proof import prove
from llmasos_jax.evals.export.stablehlo import StableHLO
from llmasos_jax.format.read import ModelFiles, read_model
from llmasos_jax.format.write import write_model
from llmasos_jax.hub.open import open_model

OUT = Path(__file__).with_suffix(".json")


def tried(files: ModelFiles, dtype: str | None) -> dict[str, Any]:
    """What jax and IREE made of a model's export."""
    target = StableHLO()
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.monotonic()
        written = target.write(files, folder, dtype, lambda name, size: None)
        proof = prove(target, files, folder, written, dtype, 0)
        seconds = time.monotonic() - start
    if proof.second is None:
        raise RuntimeError("stablehlo has a second program")
    found = asdict(proof.second) | {"difference": proof.second.difference}
    return {
        **{"jax": {"difference": proof.difference, "greedy": proof.greedy}, "iree": found},
        **{"dtype": dtype or "its own", "seconds": round(seconds, 1)},
    }


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="of the tiny models; default all")
    parser.add_argument("--model", help="one model, by its name or folder, in place of tiny ones")
    parser.add_argument("--dtype")
    args = parser.parse_args()
    made = {args.model: lambda: open_model(args.model)} if args.model else tiny_models()
    for name, make in made.items():
        if args.families and name.split()[0] not in args.families:
            continue
        with tempfile.TemporaryDirectory() as parent:
            files = make()
            if not args.model:  # of numbers in memory a folder, which other processes can read
                write_model(Path(parent, "m"), files.manifest, files.tensors)
                files = read_model(Path(parent, "m"))
            found = tried(files, args.dtype)
        # Read anew: another run of this script may have added to it.
        record = json.loads(OUT.read_text()) if OUT.is_file() else {}
        record["versions"] = {p: version(p) for p in ("jax", "iree-base-compiler")}
        label = Path(name).name if args.model else name
        record[f"{label} {args.dtype}" if args.dtype else label] = found
        OUT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(name, json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
