"""`parity` names the place of each planted fault, and what it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llmasos_jax import api
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected, flatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.models.definition import file_def, init_params

# Everything that a fault below needs is switched on; q is as wide as the model, so it can be
# transposed without an error.
FULL = ModelConfig(
    vocab_size=80,
    embedding_dim=32,
    num_layers=3,
    context_length=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=32,
    mlp="geglu_tanh",
    norm_unit_offset=True,
    norm_placement="sandwich",
    attention_windows=(None, 8, None),
    rope_scaling=RopeScaling("llama3", 8.0, original_length=32),
    tie_embeddings=False,
    embedding_scale=4.0,
    attention_soft_cap=5.0,
    logit_soft_cap=2.0,
)
Arrays = dict[str, np.ndarray]


def arrays_of(cfg: ModelConfig, seed: int = 0) -> Arrays:
    """Random weights; scales too."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, array in flatten(init_params(file_def(cfg), jax.random.key(seed))).items():
        noise = rng.standard_normal(array.shape).astype(np.float32)
        if array.ndim == 1:
            arrays[name] = np.asarray(array) + 0.2 * noise
        else:
            inner = 1.0 if name.startswith("embed") else np.prod(array.shape[:-1]) ** 0.5
            arrays[name] = noise / np.float32(inner)
    return arrays


def save(folder: Path, cfg: ModelConfig, arrays: Arrays) -> Path:
    tensors = {name: stored(arrays[name]) for name in expected(cfg)}
    return write_model(folder, Manifest(folder.name, cfg), tensors)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("right") / "right", FULL, arrays_of(FULL))


def option(**changes: Any) -> Callable[[ModelConfig, Arrays], tuple[ModelConfig, Arrays]]:
    """A fault in the parameters; the weights stay."""
    return lambda cfg, arrays: (cfg.replace(**changes), arrays)


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A fault in one tensor; the parameters stay."""
    return lambda cfg, arrays: (cfg, {**arrays, name: change(arrays[name]).astype(np.float32)})


def exchanged(one: str, two: str) -> Any:
    return lambda cfg, arrays: (cfg, {**arrays, one: arrays[two], two: arrays[one]})


def to_neighbours(w: np.ndarray) -> np.ndarray:
    return w.reshape(*w.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(w.shape)


def rope_rows(cfg: ModelConfig, arrays: Arrays) -> tuple[ModelConfig, Arrays]:
    """The rows of q and k as GGUF files of LLaMA have them."""
    turned = {n: to_neighbours(a) for n, a in arrays.items() if n.endswith(("attn.q", "attn.k"))}
    return cfg, {**arrays, **turned}


def transposed(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(w.reshape(w.shape[0], -1).T).reshape(w.shape)


# The fault, the place, and a word of the hint.
FAULTS: dict[str, tuple[Any, str, str]] = {
    "rope layout, as an option": (option(rope_interleaved=True), "layer 0", "rope layout"),
    "rope layout, in the weights": (rope_rows, "layer 0", "rope layout"),
    "rope base": (option(rope_theta=500.0), "layer 0", "rope base"),
    "rope scaling": (option(rope_scaling=RopeScaling()), "layer 0", "rope scaling"),
    "norm epsilon": (option(norm_eps=1e-2), "layer 0", "eps"),
    "head order": (
        weight("layers.1.attn.k", lambda w: w[:, ::-1].copy()),
        "layer 1",
        "head order",
    ),
    "grouping of queries": (option(num_kv_heads=4), "layer 0", "head order"),
    "tied head": (option(tie_embeddings=True), "logits", "tied head"),
    "norm offset": (option(norm_unit_offset=False), "layer 0", "norm offset"),
    "norm offset, in one weight": (
        weight("layers.2.mlp_norm.scale", lambda w: w + 1),
        "layer 2",
        "norm offset",
    ),
    "window dropped": (option(attention_windows=(None,)), "layer 1", "attention window"),
    "activation": (option(mlp="geglu"), "layer 0", "activation"),
    "transposed": (weight("layers.2.attn.q", transposed), "layer 2", "layers.2.attn.q"),
    "one number": (
        weight("layers.1.mlp.down", lambda w: w + (np.arange(w.size).reshape(w.shape) == 100)),
        "layer 1",
        "layers.1.mlp.down",
    ),
    "exchanged": (exchanged("layers.0.mlp.gate", "layers.0.mlp.up"), "layer 0", "exchanged"),
    "sign": (weight("layers.0.attn.o", lambda w: -w), "layer 0", "sign"),
    "embedding scale": (option(embedding_scale=1.0), "embedding", "embedding scale"),
    "logit soft cap": (option(logit_soft_cap=None), "logits", "logit soft cap"),
    "scores' soft cap": (option(attention_soft_cap=None), "layer 0", "soft cap of the attention"),
    "attention scale": (option(attention_scale=0.5), "layer 0", "attention scale"),
}


def plant(name: str, tmp_path: Path) -> Path:
    fault = FAULTS[name][0]
    cfg, arrays = fault(FULL, arrays_of(FULL))
    if cfg.num_kv_heads == 4:  # keys and values repeated as if queries took turns: 0 1 0 1
        arrays = {
            n: np.tile(a, (1, 2, 1)) if n.endswith(("attn.k", "attn.v")) else a
            for n, a in arrays.items()
        }
    return save(tmp_path / "wrong", cfg, arrays)


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_found_and_named(name: str, right: Path, tmp_path: Path) -> None:
    _, place, hint = FAULTS[name]
    found = api.parity(right, plant(name, tmp_path))
    assert not found.same and found.first == place, found
    assert found.hint is not None and hint in found.hint, found
    assert found.explains_all, found
    assert bool(found.options) == (not found.weights) or name in (
        "tied head",
        "grouping of queries",
    )
