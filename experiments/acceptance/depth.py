"""Compile time and size of the program, of a step over 8 layers and over 80: at most 1.3 times.

Layers are one loop, so the program has one of them however many there are. Only a CPU's training
writes short loops out (of at most 16 periods, `Runtime.max_unrolled`): 8 layers are then a larger
program than 80, which the case "CPU, as it trains" shows; the others are loops at both depths.

Seconds are those of the processor, all cores together, the least of `--repeats` runs, the two
depths by turns. Figures go to `depth.json` beside this file, under this interpreter's versions. It
takes about ten minutes on two cores; the TPU compiler comes with the extra `tpu`.

Seen so far, on busy cores: the TPU's programs are within 1.03 times. Compiling small layers takes
1.4 to 1.95 times as long for 80; "wide", whose weights are too large for a chip's fast memory at
both depths, and the 7B's own step take 0.9 and 1.1 times: it is the small stack that is quick.

    python experiments/acceptance/depth.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

# Before JAX starts: this host only compiles, and each program anew.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax

from llmasos_jax.config.build import load_config
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.plan.chips import parse_topology
from llmasos_jax.plan.pod import pod_devices
from llmasos_jax.train.step import Trainer, make_trainer

OUT = Path(__file__).with_suffix(".json")
DEPTHS, LIMIT, T = (8, 80), 1.3, 256
ONE = MeshConfig(data=1)
MEASURES = ("stablehlo_bytes", "hlo_lines", "hlo_bytes", "trace_s", "compile_s")


@dataclasses.dataclass(frozen=True)
class Case:
    """Where and how the step is compiled.

    Attributes:
      mesh: of the devices.
      pod: a topology of the TPU compiler; None is this CPU.
      is_loop: whether a CPU too has its layers in a loop.
      is_judged: whether the limit is for this one.
      width: of the model.
      config: the model and step of a pod config, in place of the small ones.
    """

    mesh: MeshConfig
    pod: str | None = None
    is_loop: bool = True
    is_judged: bool = True
    width: int = 256
    config: str | None = None


CASES = {
    "TPU v5e:2x4, fsdp 2x4": Case(MeshConfig(data=1, fsdp=(2, 4)), "v5e:2x4"),
    "TPU v5e:2x4, fsdp 2x4, wide": Case(MeshConfig(data=1, fsdp=(2, 4)), "v5e:2x4", width=2048),
    "TPU v5e:2x4, fsdp 4, tensor 2": Case(MeshConfig(data=1, fsdp=(4,), tensor=2), "v5e:2x4"),
    "TPU v5e:2x4, pipeline 2, fsdp 4": Case(MeshConfig(data=1, pipeline=2, fsdp=(4,)), "v5e:2x4"),
    "TPU v5e:16x16, LLaMA-2 7B": Case(
        MeshConfig(fsdp=(16, 16)), "v5e:16x16", config="llama2_7b:v5e:16x16"
    ),
    "CPU, one loop": Case(ONE),
    "CPU, one loop, fsdp 4, tensor 2": Case(MeshConfig(data=1, fsdp=(4,), tensor=2)),
    "CPU, as it trains": Case(ONE, is_loop=False, is_judged=False),
}


def trainer_for(case: Case, num_layers: int) -> Trainer:
    """A step over so many layers."""
    if case.config is not None and case.pod is not None:
        cfg = load_config(case.config)
        # Nothing kept: what the config keeps of 80 layers does not fit a chip.
        train = dataclasses.replace(cfg.train, remat="full", remat_save=())
        model = dataclasses.replace(cfg.model, num_layers=num_layers)
        cfg = dataclasses.replace(cfg, model=model, train=train)
        return make_trainer(cfg, make_mesh(cfg.mesh, pod_devices(parse_topology(case.pod))))
    cfg = Config(
        model=ModelConfig(
            *(1024, case.width, num_layers, T),
            num_heads=case.width // 64,
            head_dim=128,
            ffn_dim=2 * case.width,
        ),
        data=DataConfig(sequence_length=T),
        train=TrainConfig(batch_size=16, remat="full"),
        precision=PrecisionConfig("bfloat16" if case.pod else "float32"),
        mesh=case.mesh,
    )
    devices = pod_devices(parse_topology(case.pod)) if case.pod else jax.devices()
    devices = devices[:1] if case.mesh == ONE else devices
    trainer = make_trainer(cfg, make_mesh(case.mesh, devices))
    if not case.is_loop:
        return trainer
    runtime = dataclasses.replace(trainer.runtime, max_unrolled=1)
    return dataclasses.replace(trainer, runtime=runtime)


def measure(case: Case, num_layers: int) -> dict[str, float]:
    """Sizes and CPU seconds of one compilation."""
    jax.clear_caches()
    trainer = trainer_for(case, num_layers)
    start = time.process_time()
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    traced = time.process_time()
    compiled = lowered.compile()
    end = time.process_time()
    text = compiled.as_text()
    sizes = (len(lowered.as_text()), text.count("\n"), len(text))
    return dict(zip(MEASURES, (*sizes, traced - start, end - traced), strict=True))


def compare(case: Case, repeats: int) -> dict[str, dict[str, float]]:
    """The least of each measure at both depths, and what the deeper one has of the other's."""
    runs = [{depth: measure(case, depth) for depth in DEPTHS} for _ in range(repeats)]
    least = {
        depth: {name: round(min(run[depth][name] for run in runs), 3) for name in MEASURES}
        for depth in DEPTHS
    }
    small, large = least.values()
    ratio = {name: round(large[name] / small[name], 3) for name in MEASURES}
    return {f"{depth} layers": found for depth, found in least.items()} | {"ratio": ratio}


def main() -> None:
    """Runs the cases; exit status 1 where a ratio is above the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("cases", nargs="*", help="names of CASES; all if there is none")
    args = parser.parse_args()
    record = json.loads(OUT.read_text()) if OUT.exists() else {}
    packages = {name: version(name) for name in ("jax", "libtpu")}
    key = ", ".join(f"{name} {number}" for name, number in packages.items())
    results, failed = record.setdefault(key, {}), []
    for name in args.cases or CASES:
        results[name] = compare(CASES[name], args.repeats)
        ratio = results[name]["ratio"]
        print(f"{name:34s}", *(f"{key} {value:.2f}" for key, value in ratio.items()), flush=True)
        OUT.write_text(json.dumps(record, indent=1) + "\n")
        if CASES[name].is_judged and max(ratio.values()) > LIMIT:
            failed.append(name)
    print(f"limit {LIMIT}; above it: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
