"""Every type that is written as GGUF, in whole files, proven in llama.cpp.

    JAX_PLATFORMS=cpu python experiments/acceptance/export_gguf_types.py [TYPE ...]

SmolLM2's rows of 576 numbers are no whole blocks of a K type, so its files hold a mixture. Here
two small models with random weights, a dense one and one with experts, have rows of 256 and 512:
all weights but norms and routers have the type that was asked for. For each: what llama.cpp's
logarithms of probabilities differ by from ours with the weights that the file holds, as a share of
the largest, the bound, and what rounding did to weights and outputs. Expected: no type is refused,
and no file has another type than F32 beside its own. Under a minute.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from gguf_converter import random_params  # noqa: E402
from gguf_twins import Twin, wide_twins  # noqa: E402

from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer  # noqa: E402
from llmasos_jax.evals.export.gguf import Gguf, file_in  # noqa: E402
from llmasos_jax.evals.export.proof import prove  # noqa: E402
from llmasos_jax.format.manifest import Manifest  # noqa: E402
from llmasos_jax.format.read import ModelFiles  # noqa: E402
from llmasos_jax.format.tensorfile import stored  # noqa: E402
from llmasos_jax.interop.built import BuiltTokenizer  # noqa: E402
from llmasos_jax.interop.gguf.container import read_container  # noqa: E402
from llmasos_jax.interop.gguf.quantize import WRITTEN  # noqa: E402


def proven(name: str, twin: Twin, kind: str) -> dict[str, Any]:
    """Writes one model in one type, proves it, and gives the figures."""
    tensors = {n: stored(array) for n, array in random_params(twin.cfg).items()}
    manifest = Manifest(name, twin.cfg, architecture="LLaMA")
    files = ModelFiles(Path("x"), manifest, tensors, BuiltTokenizer(ByteTokenizer))
    target, start = Gguf(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        written = target.write(files, Path(folder), kind, lambda name, size: None)
        found = read_container(file_in(Path(folder))).tensors.values()
        proof = prove(target, files, Path(folder), written, kind, 0, new_tokens=4)
    return {
        "model": name,
        "type": kind,
        "types": sorted({t.type.name for t in found}),
        "difference": proof.difference,
        "bound": target.bound(files, kind),
        "weights_rounded": proof.rounded.tensors,
        "worst_tensor_error": proof.rounded.worst,
        "effect_of_rounding": max((c.difference for c in proof.effect), default=0.0),
        "greedy": proof.greedy,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(arguments: list[str]) -> int:
    """Proves each type; the figures go beside this file."""
    rows = []
    for kind in arguments or WRITTEN:
        for name, twin in wide_twins().items():
            rows.append(proven(name, twin, kind))
            print(json.dumps(rows[-1]), flush=True)
    out = Path(__file__).with_suffix(".json")
    figures = {"xllamacpp": version("xllamacpp"), "proofs": rows}
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if all(set(row["types"]) <= {row["type"], "F32"} for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
