"""Compiles a pod config's training step for TPU and writes the program's text.

See tpu_vs_maxtext.py; `--config=llama2_7b:v5e:2x4 --topology=v5e:2x4 --text=ours.txt`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX starts: this host only compiles

import jax

from llmasos_jax.config.build import load_config
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.plan.chips import parse_topology
from llmasos_jax.plan.pod import pod_devices
from llmasos_jax.train.step import make_trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--train", type=json.loads, default={}, help="fields of config.train")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    cfg = load_config(args.config)
    train = {k: tuple(v) if isinstance(v, list) else v for k, v in args.train.items()}
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **train))
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, pod_devices(parse_topology(args.topology))))
    start = time.perf_counter()
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    args.text.write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    found = {
        "lower_s": round(traced - start, 1),
        "compile_s": round(done - traced, 1),
        "peak_gib": memory.peak_memory_in_bytes / 2**30,
        "argument_gib": memory.argument_size_in_bytes / 2**30,
        "host_gib": memory.host_temp_size_in_bytes / 2**30,
        "host_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu", "flax")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
