"""Compiles MaxText's training step for TPU and writes the program's text; see tpu_vs_maxtext.

MaxText's own `train_compile` runs as it is installed; only what it compiled is looked at. Its
arguments follow `--text`:

    python experiments/benchmarks/tpu_maxtext.py --text=peer.txt model_name=llama2-7b ...
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DECOUPLE_GCLOUD", "TRUE")

COMMON = (
    "dataset_type=synthetic enable_checkpointing=false reuse_example_batch=1 run_name=aot "
    "base_output_directory=aot jax_cache_dir= steps=5 compile_topology_num_slices=1 "
    "ici_fsdp_parallelism=-1 use_iota_embed=true"
).split()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    args, settings = parser.parse_known_args()
    text = args.text.resolve()
    os.chdir(tempfile.mkdtemp())  # it writes beside itself

    import jax
    import maxtext
    from maxtext.trainers.pre_train import train_compile

    seconds: dict[str, float] = {}

    def listen(event: str, duration: float, **_: Any) -> None:
        if "/compile/" in event:
            name = event.rsplit("/", 1)[-1]
            seconds[name] = seconds.get(name, 0.0) + duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    found: list[Any] = []
    jit_and_compile = train_compile.jit_and_compile

    def watched(*positional: Any, **named: Any) -> Any:
        seconds.clear()
        start = time.perf_counter()
        found.append(jit_and_compile(*positional, **named))
        seconds["all"] = time.perf_counter() - start
        return found[-1]

    train_compile.jit_and_compile = watched
    base = Path(maxtext.__file__).parent / "configs" / "base.yml"
    train_compile.main(["train_compile", str(base), *COMMON, *settings])
    text.write_text(found[-1].as_text())
    memory = found[-1].memory_analysis()
    compile_s = seconds.get("backend_compile_duration", seconds["all"])
    row = {
        "lower_s": round(seconds["all"] - compile_s, 1),
        "compile_s": round(compile_s, 1),
        "peak_gib": memory.peak_memory_in_bytes / 2**30,
        "argument_gib": memory.argument_size_in_bytes / 2**30,
        "host_gib": memory.host_temp_size_in_bytes / 2**30,
        "host_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": {n: version(n) for n in ("jax", "jaxlib", "libtpu", "flax", "maxtext")},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
