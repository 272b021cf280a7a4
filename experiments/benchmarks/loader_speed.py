"""How fast batches come from a prepared folder, and in how much memory, on 1 GB of text.

    python experiments/benchmarks/loader_speed.py [MEGABYTES] [SECONDS] [ROOT...]

The text: every distinct .py, .md, .txt and .rst file in UTF-8 below ROOT (default /usr and this
Python), then Debian's package descriptions (`apt-cache dumpavail`), up to MEGABYTES (default 1000).
Where that is less, the rest are documents of 200 lines drawn at random from those texts; the
figures say how much. It is prepared with bytes as ids, whole and its first quarter alone. Then a
process of its own opens each as a run does (packed causal rows of 2,048 tokens, 16 a batch,
shuffled, made ahead in a thread) and takes batches for SECONDS (default 40). Memory is the largest
resident size that the kernel saw (VmHWM), mapped files included, and what of it was there before
the data were opened. Figures go to `loader_speed.json` beside this file. Expected: at least
1,000,000 tokens/s, and the same memory for both.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_suffix(".json")
KINDS = (".py", ".md", ".txt", ".rst")
LENGTH, ROWS = 2048, 16


def real_texts(roots: list[str]) -> Iterator[str]:
    """Files, each text once, then package descriptions."""
    seen: set[bytes] = set()
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(n for n in names if n.endswith(KINDS)):
                path = Path(folder, name)
                try:
                    raw = path.read_bytes()
                    text = raw.decode("utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                digest = hashlib.blake2b(raw, digest_size=16).digest()
                if text.strip() and digest not in seen:
                    seen.add(digest)
                    yield text
    try:
        found = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return
    yield from found.stdout.decode("utf-8", "replace").split("\n\n")


def build(folder: Path, megabytes: float, roots: list[str]) -> dict[str, float]:
    """Writes whole.arrow and quarter.arrow; returns megabytes by where they come from."""
    import pyarrow
    from pyarrow import ipc

    rng = random.Random(0)
    lines: list[str] = []

    def texts() -> Iterator[tuple[str, str]]:
        for text in real_texts(roots):
            found = text.splitlines(keepends=True)
            lines.extend(rng.sample(found, min(4, len(found))))
            yield "real", text
        while True:
            yield "recombined", "".join(rng.choices(lines, k=200))

    sizes = {"real": 0.0, "recombined": 0.0}
    schema = pyarrow.schema([("text", pyarrow.large_string())])
    batch: list[str] = []
    with (
        ipc.new_stream(str(folder / "whole.arrow"), schema) as whole,
        ipc.new_stream(str(folder / "quarter.arrow"), schema) as quarter,
    ):
        for kind, text in texts():
            batch.append(text)
            sizes[kind] += len(text.encode()) / 1e6
            total = sum(sizes.values())
            if len(batch) == 100 or total >= megabytes:
                record = pyarrow.record_batch(
                    [pyarrow.array(batch, pyarrow.large_string())], schema=schema
                )
                whole.write_batch(record)
                if total <= megabytes / 4:
                    quarter.write_batch(record)
                batch = []
            if total >= megabytes:
                return sizes
    raise RuntimeError("texts have no end")


def status(name: str) -> float:
    """Megabytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1e3
    raise KeyError(name)


def read(prepared: str, seconds: str) -> None:
    """In a process of its own: takes batches, and prints figures."""
    from llmasos_jax.config.schema import Config, DataConfig, ModelConfig, TrainConfig
    from llmasos_jax.data.pipeline import open_data
    from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer

    cfg = Config(
        model=ModelConfig(vocab_size=259, embedding_dim=8, num_layers=1),
        data=DataConfig(source="prepared", path=prepared, sequence_length=LENGTH),
        train=TrainConfig(batch_size=ROWS),
    )
    before = status("VmHWM")
    data = open_data(cfg, ByteTokenizer(), Path(prepared).parent / "cache")
    next(data.train)
    batches, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < float(seconds):
        next(data.train)
        batches += 1
    took_s = time.perf_counter() - start_s
    data.close()
    figures = {
        "tokens": data.num_train_tokens,
        "tokens_read": batches * ROWS * LENGTH,
        "tokens_per_s": batches * ROWS * LENGTH / took_s,
        "before_open_mb": before,
        "peak_mb": status("VmHWM"),
    }
    print(json.dumps(figures))


def program(*words: str) -> Any:
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ})
    return json.loads(done.stdout)


def prepare(arrow: str, out: str) -> None:
    """In a process of its own: prepares, and prints figures."""
    from llmasos_jax.config.schema import DataConfig
    from llmasos_jax.data.prepared.run import run
    from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer

    data = DataConfig(source="arrow", path=arrow)
    made = run(data, ByteTokenizer(), Path(out), Path(out).parent / "cache")
    figures = {
        "prepare_s": made.duration_s,
        "documents": made.source_documents,
        "shards": made.shards,
        "on_disk_mb": made.bytes / 1e6,
    }
    print(json.dumps(figures))


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if sys.argv[1:2] in (["read"], ["prepare"]):
        {"read": read, "prepare": prepare}[sys.argv[1]](*sys.argv[2:])
        return
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1000.0
    seconds = sys.argv[2] if len(sys.argv) > 2 else "40"
    roots = sys.argv[3:] or ["/usr", sysconfig.get_paths()["purelib"]]
    folder = Path(tempfile.mkdtemp())
    try:
        sizes = build(folder, megabytes, roots)
        print(sizes, flush=True)
        figures: dict[str, Any] = {"text_mb": sizes}
        for name in ("quarter", "whole"):
            arrow, out = folder / f"{name}.arrow", folder / name
            figures[name] = {"text_mb": arrow.stat().st_size / 1e6}
            figures[name] |= program("prepare", str(arrow), str(out))
            figures[name] |= program("read", str(out), seconds)
            print(name, figures[name], flush=True)
        figures |= {
            "expected_tokens_per_s": 1_000_000,
            "peak_whole_over_quarter": figures["whole"]["peak_mb"] / figures["quarter"]["peak_mb"],
            "cpu": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
        }
        OUT.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
