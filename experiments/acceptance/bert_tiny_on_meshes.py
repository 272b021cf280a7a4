"""The first steps of `configs/bert_tiny.py` on one device and on eight, cut up in several ways.

Losses of the same batches from the same weights, so they differ by rounding alone. Figures go to
`bert_tiny_on_meshes.json` beside this file:

    python experiments/acceptance/bert_tiny_on_meshes.py --steps=20
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax

from llmasos_jax.config.build import build, read_config
from llmasos_jax.config.files import cache_folder
from llmasos_jax.config.schema import Config, MeshConfig
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.sources import documents
from llmasos_jax.data.tokenizers.load import build_tokenizer
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import make_trainer

HERE = Path(__file__).parent
MESHES = {
    "1": MeshConfig(data=1),
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=(8,)),
    "fsdp 2x4": MeshConfig(data=1, fsdp=(2, 4)),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=(2,), tensor=2),
}


def losses(cfg: Config, mesh: MeshConfig, tokenizer: Tokenizer, cache: Path, steps: int) -> list:
    """The loss of each of the first steps."""
    num_devices = 1 if mesh == MESHES["1"] else 8
    vocabulary = vocabulary_of(tokenizer, cfg.model.vocab_size)
    trainer = make_trainer(cfg, make_mesh(mesh, jax.devices()[:num_devices]), vocabulary)
    objective = trainer.objective
    data = open_data(
        cfg,
        tokenizer,
        cache,
        prepare=objective.prepare,
        rows=objective.rows,
        by_sentence=objective.by_sentence,
    )
    state = trainer.init(jax.random.key(cfg.train.seed))
    found = []
    for step in range(steps):
        state, metrics = trainer.step(state, trainer.put(data.train[step]))
        found.append(float(metrics.loss))
    return found


def main() -> None:
    """Runs each mesh, prints the largest relative difference to one device, writes the figures."""
    parser = argparse.ArgumentParser(description="bert_tiny on one device and on eight.")
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    cfg = build(read_config("bert_tiny"))
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        tokenizer = build_tokenizer(cfg, documents(cfg.data, cache), cache_folder() / "data")
        runs = {m: losses(cfg, mesh, tokenizer, cache, steps) for m, mesh in MESHES.items()}
    worst = {
        name: max(abs(a - b) / b for a, b in zip(run, runs["1"], strict=True))
        for name, run in runs.items()
    }
    figures = {"steps": steps, "largest_relative_difference": worst, "loss": runs}
    figures["jax"] = version("jax")
    (HERE / "bert_tiny_on_meshes.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(worst, indent=2))


if __name__ == "__main__":
    main()
