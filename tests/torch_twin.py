"""A small LLaMA twice, with the same weights: ours and transformers', for losses and gradients."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from on_meshes import QUICK, trainer_of
from small_hf import LLAMA, Json, read

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.interop.tables import unbind
from llmasos_jax.models.definition import ModelDef, init_params, relayout
from llmasos_jax.models.layout import scan_layout, unrolled_layout
from llmasos_jax.types import Tree


@dataclass(frozen=True)
class Twin:
    """Attributes: cfg, ours; torch, theirs."""

    cfg: ModelConfig
    torch: Any


def twin(sizes: Json = LLAMA, seed: int = 0) -> tuple[Twin, Tree]:
    """Their model, fresh gradients, and our weights in the layout of training."""
    import torch
    import transformers

    cfg = read(sizes)
    params = _weights(cfg, seed)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{k: v for k, v in sizes.items() if k != "torch_dtype"})
    )
    tensors = {n: torch.from_numpy(a) for n, a in _their_names(cfg, params).items()}
    missing = theirs.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys
    return Twin(cfg, theirs.eval()), params


@functools.cache
def _weights(cfg: ModelConfig, seed: int) -> Tree:
    params = init_params(ModelDef(cfg, scan_layout(cfg)), jax.random.key(seed), std=0.3)
    return jax.device_get(params)


def _their_names(cfg: ModelConfig, params: Tree) -> dict[str, np.ndarray]:
    unrolled = relayout(params, scan_layout(cfg), unrolled_layout(cfg))
    ours = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(unrolled):
        words = [str(key.key) for key in path]
        ours[".".join(["layers", *words[1:]] if words[0] == "prefix" else words)] = leaf
    assert ours.keys() == expected(cfg).keys()
    family = next(f for f in FAMILIES if "LlamaForCausalLM" in f.architectures)
    tensors: dict[str, Any] = {n: stored(np.asarray(a, np.float32)) for n, a in ours.items()}
    table = family.table(cfg)
    return {n: np.ascontiguousarray(t.read()) for n, t in unbind(table, cfg, tensors).items()}


def named_gradients(model: Twin, grads: Tree) -> dict[str, np.ndarray]:
    """Our gradients under their names."""
    return _their_names(model.cfg, grads)


def gradients(cfg: Config, params: Tree, batch: Batch) -> tuple[Any, Tree]:
    """The sums of the loss and the gradients, on the host."""
    trainer = trainer_of(cfg)
    weights = jax.device_put(params, trainer.state_shardings.params)
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    return jax.device_get(run(weights, trainer.put(batch), jax.random.key(3)))
