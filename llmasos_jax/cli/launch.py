"""Writes the files that start a config on a cluster: Kubernetes (GKE), XPK, Slurm, a TPU VM.

With --sweep all points of a sweep, each as a run of its own. What only you know is asked for: a
file with gaps would start nothing. Nothing is started here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmasos_jax.cli.main import UsageError
from llmasos_jax.cli.options import add_config, add_json, config_of, print_json

# The options whose value is a text, in the order of the help.
_TEXTS = {
    "workdir": ("DIR", "training folder (the sweep's) as the hosts see it; all of them share it"),
    "image": ("IMAGE", "container image that has llmasos with the extra tpu (gke, xpk)"),
    "bucket": ("NAME", "Cloud Storage bucket, mounted at /data in each pod (gke)"),
    "namespace": ("NS", "Kubernetes namespace (gke; default)"),
    "service-account": ("NAME", "Kubernetes service account with access to the bucket (gke)"),
    "queue": ("NAME", "Kueue's queue (gke)"),
    "cluster": ("NAME", "cluster (xpk)"),
    "project": ("ID", "Google Cloud project (xpk, tpu-vm)"),
    "zone": ("ZONE", "Google Cloud zone (xpk, tpu-vm)"),
    "tpu": ("NAME", "the TPU VM (tpu-vm)"),
    "partition": ("NAME", "partition (slurm)"),
    "time": ("TIME", "time limit of a job, HH:MM:SS or D-HH:MM:SS (slurm)"),
    "account": ("NAME", "whom to charge (slurm)"),
    "setup": ("CMD", "shell command that comes first on each host"),
}
_NUMBERS = {
    "nodes": "machines, with one process each (slurm)",
    "gpus-per-node": "GPUs of each (slurm)",
    "save-s": "seconds from SIGTERM to the end, to save (gke, xpk: 600; slurm: 120)",
    "max-restarts": "how often a run starts again (gke, xpk; slurm with --restart-lost; 10)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos launch`."""
    add_config(parser, required=False)
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE", help="in place of --config: a sweep's Python file"
    )
    parser.add_argument("--on", required=True, metavar="KIND", help="gke, xpk, slurm or tpu-vm")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the files"
    )
    parser.add_argument(
        "--topology", metavar="T", help="TPU chips of a slice: v5e:16x16, v5p:4x4x4"
    )
    parser.add_argument("--slices", type=int, metavar="N", help="such slices (mesh.slices)")
    for name, (metavar, text) in _TEXTS.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=text)
    for name, text in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    parser.add_argument(
        "--restart-lost",
        action="store_true",
        help="status 3 (a lost host, a loss that is not finite) starts it again (not tpu-vm)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the files and says how to start the run."""
    if (args.config is None) == (args.sweep is None):
        raise UsageError("give --config=X, or --sweep=FILE for all points of a sweep")

    from llmasos_jax import api

    names = [name.replace("-", "_") for name in (*_TEXTS, *_NUMBERS)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    given |= {"topology": args.topology, "slices": args.slices}
    given |= {"restart_lost": args.restart_lost}
    if args.sweep is None:
        result = api.launch(config_of(args), args.on, args.out, **given)
    else:
        result = api.launch_sweep(args.sweep, args.on, args.out, overrides=args.overrides, **given)
    if args.json:
        print_json(result.to_dict())
    else:
        print(result)
