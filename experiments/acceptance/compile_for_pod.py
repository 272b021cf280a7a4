"""Compiles the real training step for a TPU pod, on a machine that has no TPU.

The compiler comes with the extra `tpu` (`pip install 'llmasos-jax[tpu]'`). Figures go to
`compile_for_pod.json` beside this file, under this interpreter's versions; `docs/sharding.md` says
what they mean. All cases take about two minutes each on two cores:

    python experiments/acceptance/compile_for_pod.py            # all of CASES
    python experiments/acceptance/compile_for_pod.py "7B 16x16" --layers=2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

# Before JAX starts: this host only compiles.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.data.objectives import causal
from llmasos_jax.generate.sampling import Sampling, draw, sampling_rows, seen_in
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.plan.hlo import COLLECTIVES, read_program
from llmasos_jax.train.losses import cross_entropy
from llmasos_jax.train.objective import LossSum, Objective
from llmasos_jax.train.step import Trainer, make_trainer

OUT = Path(__file__).with_suffix(".json")
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One program: LLaMA-2 7B's widths (Touvron et al., 2023, arXiv 2307.09288, table 1) on a pod.

    Attributes:
      fsdp, tensor, data: the mesh.
      program: of `PROGRAMS`.
      layers: scanned.
      rows: sequences of 2048 tokens per group of `tensor` chips.
      remat: what the backward pass computes again.
      topology: as the TPU compiler names it.
      model: other fields of the model.
    """

    fsdp: tuple[int, ...]
    tensor: int = 1
    data: int = 1
    program: str = "step"
    layers: int = 32
    rows: int = 4
    remat: str = "full"
    topology: str = "v5e:16x16"
    model: tuple[tuple[str, object], ...] = ()


GQA = (("num_kv_heads", 8), ("qk_norm", "head"), ("qkv_bias", True), ("tie_embeddings", True))
WINDOWS = (("attention_windows", (512, None)), ("attention_soft_cap", 50.0), ("head_dim", 64))
LEARNED = (("position", "learned"), ("norm", "layernorm"), ("mlp", "gelu"), ("mlp_bias", True))
CASES = {
    "7B 16x16": Case((16, 16)),
    "7B 16x8, tensor 2": Case((16, 8), tensor=2),
    "7B 256": Case((256,)),
    "7B 16x16, remat dots, 1 row": Case((16, 16), remat="dots", rows=1),
    "7B 16x8, tensor 2, init": Case((16, 8), tensor=2, program="init"),
    "data 2, 8x8, tensor 2": Case((8, 8), tensor=2, data=2, layers=4),
    "GQA, windows, tied, 16x4, tensor 4": Case((16, 4), tensor=4, layers=4, model=(*GQA, *WINDOWS)),
    "learned positions, 16x8, tensor 2": Case((16, 8), tensor=2, layers=4, model=LEARNED),
    "masked, 16x8, tensor 2": Case(
        (16, 8), tensor=2, layers=4, program="masked step", model=(*LEARNED, ("causal", False))
    ),
    "top-p, 16x8, tensor 2": Case((16, 8), tensor=2, program="top-p"),
}


def trainer_of(case: Case) -> Trainer:
    """The Trainer on devices that are not there; nothing is allocated."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=case.topology).devices
    widths = {"embedding_dim": 4096, "num_heads": 32, "ffn_dim": 11008, "tie_embeddings": False}
    mesh = MeshConfig(data=case.data, fsdp=case.fsdp, tensor=case.tensor)
    cfg = Config(
        model=ModelConfig(
            vocab_size=32000, num_layers=case.layers, **{**widths, **dict(case.model)}
        ),
        data=DataConfig(sequence_length=2048),
        train=TrainConfig(
            batch_size=case.rows * len(devices) // case.tensor,
            remat=case.remat,
        ),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh,
    )
    return make_trainer(cfg, make_mesh(mesh, devices))


def step(trainer: Trainer) -> jax.stages.Lowered:
    return trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)


def init(trainer: Trainer) -> jax.stages.Lowered:
    return jax.jit(trainer.init).lower(jax.eval_shape(lambda: jax.random.key(0)))


def masked_step(trainer: Trainer) -> jax.stages.Lowered:
    """Predicts P tokens of each row: their hidden states are gathered before the output layer."""

    def prepare(row, rng):
        batch = causal(row, rng)
        num = int(0.15 * batch.tokens.shape[-1]) // 8 * 8
        ids = np.zeros(num, np.int32)
        extra = {"masked": ids, "targets": ids, "weights": np.ones(num, np.float32)}
        return replace(batch, extra=extra)

    def loss(model, batch, runtime, dropout):
        hidden = model.hidden(batch.tokens, segment_ids_bt=batch.segment_ids, runtime=runtime)
        rows_bpd = jnp.take_along_axis(hidden.x_btd, batch.extra["masked"][:, :, None], axis=1)
        logits_bpv = model.logits(rows_bpd, runtime)
        sums = cross_entropy(logits_bpv, batch.extra["targets"], batch.extra["weights"])
        return LossSum(sums.nll_sum, sums.nll_sum, sums.weight_sum)

    return step(replace(trainer, objective=Objective(prepare, loss)))


def top_p(trainer: Trainer) -> jax.stages.Lowered:
    """Output layer and one top-p draw per row, the vocabulary split over `tensor`."""
    manual, cfg = trainer.manual, trainer.cfg
    b = cfg.train.batch_size

    def run(params, x_b1d, key_data):
        logits_bv = trainer.definition.bind(params).logits(x_b1d, trainer.runtime)[:, 0]
        rows = logits_bv.shape[0]
        key = jax.random.wrap_key_data(key_data)
        index_b = manual.first_row(rows) + jnp.arange(rows)
        options = replace(
            sampling_rows([Sampling(top_k=50, top_p=0.9)] * rows),
            key_b=jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index_b),
        )
        seen = seen_in(jnp.zeros((rows, 0), jnp.int32), logits_bv.shape[1])
        return draw(logits_bv, seen, index_b, options)

    batch, whole = manual.spec("batch"), PartitionSpec()
    mapped = manual.shard_map(run, (trainer._specs, batch, whole), batch)
    hidden = jax.ShapeDtypeStruct(
        (b, 1, cfg.model.embedding_dim), jnp.bfloat16, sharding=trainer.batch_sharding
    )
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=NamedSharding(trainer.mesh, whole))
    return jax.jit(mapped).lower(trainer.abstract_state.params, hidden, key)


PROGRAMS: dict[str, Callable[[Trainer], jax.stages.Lowered]] = {
    "step": step,
    "init": init,
    "masked step": masked_step,
    "top-p": top_p,
}


def figures(case: Case, hlo: Path | None = None) -> dict:
    """Compiles a case and reads its program. Sizes are per chip."""
    trainer = trainer_of(case)
    start = time.perf_counter()
    lowered = PROGRAMS[case.program](trainer)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    text = compiled.as_text()
    if hlo is not None:
        hlo.write_text(text)
    memory, program = compiled.memory_analysis(), read_program(text)
    return {
        "case": asdict(case) | {"model": dict(case.model)},
        "lower_s": round(middle - start, 1),
        "compile_s": round(end - middle, 1),
        "argument_gib": round(memory.argument_size_in_bytes / GIB, 3),
        "temp_gib": round(memory.temp_size_in_bytes / GIB, 3),
        "peak_gib": round(memory.peak_memory_in_bytes / GIB, 3),
        "estimated_cycles": program.cycles,
        "kernels": program.kernels,
        "collectives": {
            kind: {
                "in_text": len(program.of(kind)),
                "runs": sum(c.runs for c in program.of(kind)),
                "link_gb": round(program.link_bytes(kind) / 1e9, 3),
            }
            for kind in COLLECTIVES
            if program.of(kind)
        },
        "link_gb": round(program.link_bytes() / 1e9, 2),
        "loops_of_unknown_length": list(program.endless),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--layers", type=int, help="instead of the case's own; nothing is stored")
    parser.add_argument("--hlo", type=Path, help="folder for the compiled programs' text")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no case {sorted(unknown)}; known: {', '.join(CASES)}")
    versions = f"jax {jax.__version__}, libtpu {version('libtpu')}"
    for name in args.cases or CASES:
        case = CASES[name]
        case = replace(case, layers=args.layers) if args.layers else case
        hlo = args.hlo / f"{name}, {versions}.txt" if args.hlo else None
        found = figures(case, hlo)
        print(json.dumps({name: found}))
        if not args.layers:
            stored = json.loads(OUT.read_text()) if OUT.exists() else {}
            stored.setdefault(name, {})[versions] = found
            OUT.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
