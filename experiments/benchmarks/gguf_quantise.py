"""Our GGUF quantisers beside those of the package gguf, in pairs; K types beside llama.cpp's.

    JAX_PLATFORMS=cpu python experiments/benchmarks/gguf_quantise.py

One tensor of 2048 x 1536 normal numbers, one thread each, so that memory traffic is as in a real
export. Each pair is timed one after the other, `REPEATS` times; the figure is the median of the
ratios, theirs over ours, so above 1 ours is faster. The package has no quantiser for K types: those
are timed beside llama.cpp's own functions in C, called through ctypes where the build shows them.
Expected: at least 1 for every type that the package has (F16 and BF16 are its casts).
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from llmasos_jax.interop.gguf.quantize import TYPES, written_parts

REPEATS = 7
PACKAGE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16")
K_TYPES = ("Q4_K", "Q5_K", "Q6_K")


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def llama_quantiser(kind: str, x: np.ndarray) -> Callable[[], object] | None:
    """llama.cpp's own function on `x`; None where the build does not show it."""
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    function = getattr(library, f"quantize_row_q{kind[1]}_K_ref", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    out = np.empty(x.size // 256 * TYPES[kind].nbytes, np.uint8)
    return lambda: function(x.ctypes.data, out.ctypes.data, x.size)


def main() -> int:
    """Times every pair; the figures go beside this file."""
    x = np.random.default_rng(0).standard_normal((2048, 1536)).astype(np.float32)
    rows = []
    for kind in (*PACKAGE, *K_TYPES):
        if kind in PACKAGE:
            number = gguf.GGMLQuantizationType[kind]

            def theirs(number: gguf.GGMLQuantizationType = number) -> object:
                return gguf.quants.quantize(x, number)
        else:
            found = llama_quantiser(kind, x)
            if found is None:
                continue
            theirs = found

        def ours(kind: str = kind) -> object:
            return [part.nbytes for part in written_parts(kind, x)]

        pairs = [(seconds(ours), seconds(theirs)) for _ in range(REPEATS + 1)][1:]
        rows.append(
            {
                "type": kind,
                "beside": "gguf" if kind in PACKAGE else "llama.cpp (C)",
                "ours_ns_per_number": round(min(a for a, _ in pairs) / x.size * 1e9, 2),
                "theirs_ns_per_number": round(min(b for _, b in pairs) / x.size * 1e9, 2),
                "ratio_median": round(statistics.median(b / a for a, b in pairs), 2),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    figures = {"machine": platform.machine(), "numbers": x.size, "pairs": REPEATS, "types": rows}
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if all(r["ratio_median"] >= 1 for r in rows if r["beside"] == "gguf") else 1


if __name__ == "__main__":
    sys.exit(main())
