"""Training steps compiled for TPU pods: this project beside MaxText, in one run.

Both sides with the same jax and libtpu, the same model, rows, sequence, optimizer (AdamW, clipping
at 1.0), float32 weights and moments, bfloat16 products, attention by the splash kernel; nothing
runs, no TPU is needed. Both programs are read by `llmasos_jax.plan.hlo`, loops multiplied out:

    cycles   the compiler's own estimates added up, without Pallas kernels and collectives
    link GB  what a chip sends in a step, on rings
    peak     GiB of a chip's memory
    TFLOP    matrix products that are run, without kernels
    HBM GB   operands and results of what runs: an estimate

    pip install 'maxtext[tpu]==0.2.5'     # Python 3.12, in an environment of its own
    python experiments/benchmarks/tpu_vs_maxtext.py --peer-python=PYTHON_WITH_MAXTEXT [CASE ...]

This interpreter needs the peer's jax and libtpu; other versions are refused. A side takes one to
four minutes on two cores. Writes tpu_vs_maxtext.json beside itself and prints what it found, and
ours over the peer's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from llmasos_jax.plan.hlo import COLLECTIVES, read_program

HERE = Path(__file__).parent
OUT = Path(__file__).with_suffix(".json")
# Groups of flags that MaxText publishes with its recipes.
V5E = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true "
    "--xla_tpu_data_parallel_opt_different_sized_ops=true "
    "--xla_tpu_enable_async_collective_fusion=true "
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true "
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true "
    "--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"
)
V6E = "--xla_tpu_scoped_vmem_limit_kib=98304"
BLOCKS = "sa_block_q=1024 sa_block_q_dkv=2048 sa_block_q_dq=2048"


@dataclass(frozen=True)
class Case:
    """A model on a pod, and what each side is told.

    Attributes:
      config: of this project.
      topology: as this project names it.
      peer: MaxText's settings; empty for a case that its recipe has none for.
      peer_flags: of libtpu, for the peer.
      flags: of libtpu, for this project.
      choices: by name, fields of `config.train` for each program of this project; {} is the config
        as it is.
    """

    config: str
    topology: str
    peer: str
    peer_flags: str
    flags: str = ""
    choices: dict[str, dict] = field(default_factory=lambda: {"config": {}})


_V6E_PEER = f"compile_topology=v6e-256 max_target_length=8192 remat_policy=full {BLOCKS}"
CASES = {
    "7B, v5e:16x16, 4 x 2048 a chip": Case(
        "llama2_7b:v5e:16x16",
        "v5e:16x16",
        "model_name=llama2-7b compile_topology=v5e-256 per_device_batch_size=4 "
        "max_target_length=2048 remat_policy=save_qkv_proj attention=flash",
        V5E,
        choices={
            "config": {},
            "full remat": {"remat": "full", "remat_save": []},
        },
    ),
    "7B, v5e:2x4, 1 x 2048 a chip": Case(
        "llama2_7b:v5e:2x4",
        "v5e:2x4",
        "model_name=llama2-7b compile_topology=v5e-8 per_device_batch_size=1 "
        "max_target_length=2048 remat_policy=full attention=flash",
        V5E,
    ),
    "8B, v6e:16x16, 4 x 8192 a chip": Case(
        "llama3_1_8b:v6e:16x16",
        "v6e:16x16",
        f"model_name=llama3.1-8b per_device_batch_size=4 attention=flash {_V6E_PEER}",
        V6E,
        V6E,
    ),
    "8B, v6e:16x16, 4 x 8192 a chip, without flags": Case(
        "llama3_1_8b:v6e:16x16",
        "v6e:16x16",
        "",  # what the flag does for ours
        "",
    ),
    "8B, v6e:16x16, 8 x 8192 a chip": Case(
        "llama3_1_8b:v6e:16x16-b8",
        "v6e:16x16",
        "",  # MaxText's published recipe, which does not fit with this compiler
        "",
        V6E,
    ),
}


def compiled(command: list[str], flags: str, text: Path) -> dict:
    """Runs one side in its own process and reads the program that it wrote."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent.parent)}
    if flags:
        env["LIBTPU_INIT_ARGS"] = flags
    done = subprocess.run([*command, f"--text={text}"], capture_output=True, text=True, env=env)
    if done.returncode:
        return {"error": (done.stderr or done.stdout)[-1500:]}
    row = json.loads(done.stdout.splitlines()[-1])
    program = read_program(text.read_text())
    return row | {
        "gcycles": program.cycles / 1e9,
        "link_gb": program.link_bytes() / 1e9,
        "link_gb_by_kind": {
            kind: program.link_bytes(kind) / 1e9 for kind in COLLECTIVES if program.of(kind)
        },
        "product_tflop": program.flops / 1e12,
        "hbm_gb": program.hbm_bytes / 1e9,
        "kernels_run": sum(program.kernels.values()),
        "loops_of_unknown_length": list(program.endless),
        "flags": flags,
    }


def ratios(ours: dict, peer: dict) -> dict:
    """Ours over the peer's, of what both have."""
    names = ("gcycles", "link_gb", "peak_gib", "product_tflop", "hbm_gb", "kernels_run")
    both = "error" not in ours and "error" not in peer
    return {name: round(ours[name] / peer[name], 4) for name in names} if both else {}


def run_case(name: str, peer_python: str, folder: Path) -> None:
    """Both sides of a case, one after the other; each is stored when it is there."""
    case = CASES[name]
    found: dict = {"ours": {}, "ratios": {}}
    peer = None
    if case.peer:
        command = [peer_python, str(HERE / "tpu_maxtext.py"), *case.peer.split()]
        peer = compiled(command, case.peer_flags, folder / f"peer {case.topology}.txt")
        found["peer"] = peer
        print(json.dumps({"peer": peer}), flush=True)
        store(name, found)
    for choice, train in case.choices.items():
        command = [sys.executable, str(HERE / "tpu_ours.py"), f"--config={case.config}"]
        command += [f"--topology={case.topology}", f"--train={json.dumps(train)}"]
        row = compiled(command, case.flags, folder / f"ours {case.topology} {choice}.txt")
        found["ours"][choice] = {"train": train, **row}
        print(json.dumps({choice: row}), flush=True)
        if peer is not None:
            check_versions(row, peer)
            found["ratios"][choice] = ratios(row, peer)
            print(json.dumps({"ratios": found["ratios"][choice]}), flush=True)
        store(name, found)


def store(name: str, found: dict) -> None:
    """Puts a case into the file beside this one."""
    stored = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps(stored | {name: found}, indent=1) + "\n")


def check_versions(ours: dict, peer: dict) -> None:
    """Refuses to compare two compilers."""
    if "error" in ours or "error" in peer:
        return
    for name in ("jax", "libtpu"):
        mine, other = ours["versions"][name], peer["versions"][name]
        if mine != other:
            raise SystemExit(f"{name} {mine} here, {other} at the peer's; install the same one")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {'; '.join(CASES)}; all if none is named")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--keep", type=Path, help="folder for the programs' texts")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no case {sorted(unknown)}; known: {'; '.join(CASES)}")
    for name in args.cases or CASES:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run_case(name, args.peer_python, args.keep or Path(folder))


if __name__ == "__main__":
    main()
