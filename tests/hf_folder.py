"""Tiny Hugging Face folders with random weights, written without torch."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.interop.tables import unbind


def write(folder: pathlib.Path, config: dict[str, Any], files: int = 1) -> pathlib.Path:
    """A folder with random weights, in one file or with an index."""
    family = next(f for f in FAMILIES if config["architectures"][0] in f.architectures)
    cfg = family.read_config(Keys(config, "config.json"))
    rng = np.random.default_rng(0)
    ours = {n: stored(rng.random(s.shape, np.float32)) for n, s in expected(cfg).items()}
    theirs = {
        name: np.ascontiguousarray(tensor.read())
        for name, tensor in unbind(family.table(cfg), cfg, ours).items()
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if files == 1:
        save_file(theirs, folder / "model.safetensors")
        return folder
    names = sorted(theirs)
    homes = {n: f"model-{1 + i % files:05}-of-{files:05}.safetensors" for i, n in enumerate(names)}
    for file in set(homes.values()):
        save_file({n: theirs[n] for n in names if homes[n] == file}, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in theirs.values())}}
    (folder / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": homes}))
    return folder
