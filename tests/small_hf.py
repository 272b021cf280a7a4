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


def write(folder: Path, config: Json, seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """A folder of random weights; gives their tensors."""
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
    save_file(theirs, folder / "model.safetensors")
    return theirs
