"""Two real models as ONNX: SmolLM2-135M-Instruct and all-MiniLM-L6-v2, each proven in onnxruntime.

For each dtype: the graph's outputs beside ours with the same weights, greedy tokens through its
cache beside the likeliest here, tensors read back, texts split alike. The decoder is run by
onnxruntime-genai too, by the `genai_config.json` beside the graph, where that is installed. What
was found goes to `export_onnx.json` beside this file:

    python experiments/acceptance/export_onnx.py                     # both, a few minutes
    python experiments/acceptance/export_onnx.py minilm --out=KEPT   # one, and keep the folders
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmasos_jax.evals.export.onnx import Onnx, OpenedGraphs
from llmasos_jax.evals.export.proof import prove
from llmasos_jax.evals.export.questions import FIXED
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.hub.open import open_model

HERE = Path(__file__).parent
MODELS = {"smollm2": "smollm2-135m-instruct", "minilm": "all-minilm-l6-v2"}
DTYPES = (None, "float16", "bfloat16")
NEW = 16


def run(files: ModelFiles, dtype: str | None, folder: Path) -> dict[str, Any]:
    """Writes a model, opens it, and compares everything."""
    target, start = Onnx(), time.monotonic()
    target.check(files, dtype)
    written = target.write(files, folder, dtype, lambda name, size: None)
    seconds = time.monotonic() - start
    proof = prove(target, files, folder, written, dtype, 0)
    found = {
        "dtype": dtype or "its own",
        "what": written.saved_class,
        "notes": list(written.notes),
        "tensors": written.num_tensors,
        "megabytes": round(written.num_bytes / 1e6, 1),
        "write_seconds": round(seconds, 1),
        "proof": asdict(proof),
        "largest_resident_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    if (folder / "genai_config.json").is_file():
        found["genai"] = by_genai(files, folder)
    return found


def by_genai(files: ModelFiles, folder: Path) -> dict[str, Any] | None:
    """Greedy tokens of onnxruntime-genai, beside those of onnxruntime through our own loop."""
    try:
        genai: Any = importlib.import_module("onnxruntime_genai")
    except ImportError:
        return None
    if files.tokenizer is None:
        return None
    ids = files.tokenizer.load().encode(FIXED)
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + NEW, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(ids)
    found: list[int] = []
    while not generator.is_done() and len(found) < NEW:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    ours = OpenedGraphs(folder, files.manifest.parameters).greedy(ids, len(found))
    said: dict[str, Any] = {"tokens": found, "same_tokens": found == ours}
    try:
        tokenizer = genai.Tokenizer(model)
        said["same_prompt_ids"] = [int(i) for i in tokenizer.encode(FIXED)] == list(ids)
    except RuntimeError as error:  # it knows some of the regular expressions of tokenizer.json
        said["tokenizer_refused"] = " ".join(str(error).split())[:120]
    return said | {"version": version("onnxruntime-genai")}


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--source", help="where the one model is, in place of its name")
    parser.add_argument("--out", type=Path, help="keep the exports below this folder")
    parser.add_argument("--dtypes", nargs="*", default=[d or "own" for d in DTYPES])
    args = parser.parse_args()
    path = HERE / "export_onnx.json"
    for name in args.models:
        files = open_model(args.source or MODELS[name])
        for dtype in args.dtypes:
            with tempfile.TemporaryDirectory() as parent:
                folder = (args.out or Path(parent)) / f"{name}-{dtype}"
                folder.mkdir(parents=True)
                found = run(files, None if dtype == "own" else dtype, folder)
            # Read anew: another run of this script may have added to it.
            report = json.loads(path.read_text()) if path.is_file() else {}
            report["versions"] = {p: version(p) for p in ("jax", "onnx", "onnxruntime")}
            report.setdefault(name, {})[dtype] = found
            path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            print(name, dtype, json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
