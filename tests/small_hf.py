"""A small Hugging Face folder of random weights, made by the tables' way back, without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.interop.tables import unbind

Json = dict[str, Any]
LLAMA: Json = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "eos_token_id": 3,
    "torch_dtype": "float32",
    "use_cache": True,
}


def read(config: Json, ignore: tuple[str, ...] = ()) -> ModelConfig:
    name = config.get("architectures", ["LlamaForCausalLM"])[0]
    family = next(f for f in FAMILIES if name in f.architectures)
    keys = Keys(config, "config.json", ignore)
    cfg = family.read_config(keys)
    keys.finish()
    return cfg


def write(
    folder: Path, config: Json, seed: int = 0, *, files: int = 1, **changes: Any
) -> dict[str, np.ndarray]:
    """A folder of random weights, in one file or with an index; gives their tensors."""
    config = {**config, **changes}
    cfg = read(config)
    family = next(f for f in FAMILIES if config["architectures"][0] in f.architectures)
    rng = np.random.default_rng(seed)
    ours = {n: stored(rng.random(s.shape, np.float32)) for n, s in expected(cfg).items()}
    theirs = {
        name: np.ascontiguousarray(tensor.read())
        for name, tensor in unbind(family.table(cfg), cfg, ours).items()
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(theirs, folder / "model.safetensors")
        return theirs
    names = sorted(theirs)
    homes = {n: f"model-{1 + i % files:05}-of-{files:05}.safetensors" for i, n in enumerate(names)}
    for file in set(homes.values()):
        save_file({n: theirs[n] for n in names if homes[n] == file}, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in theirs.values())}}
    (folder / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": homes}))
    return theirs


def written(folder: Path, config: Json, files: int = 1) -> Path:
    """The folder itself; see `write`."""
    write(folder, config, files=files)
    return folder
