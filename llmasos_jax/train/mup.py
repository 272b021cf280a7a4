"""Maximal update parametrization: a learning rate found on a narrow model serves a wide one.

With m = `model.embedding_dim` / `optim.mup_base_dim`, matrices inside of blocks start with
1 / sqrt(m) of their standard deviation and move with 1 / m of the learning rate, and logits are
multiplied by 1 / m (`model.logit_scale`, part of the model). Embeddings, norms and biases are as
they were, so a model of the base's width trains as it would without.

References:
  Yang et al., 2022, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter
  Transfer", arXiv 2203.03466, tables 3 and 8.
"""

from __future__ import annotations

import math
from typing import Any

import optax

from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.train.weights import Path, is_in_block, map_named, matrix
from llmasos_jax.types import Tree

# Their updates are as large whatever the gradient's scale.
_OPTIMIZERS = ("adamw", "lion")


def width_ratio(cfg: Config) -> float:
    """m, the model's width in widths of the base; 1 without `optim.mup_base_dim`.

    Example:
      >>> from llmasos_jax.config.build import load_config
      >>> width_ratio(load_config("tiny"))
      1.0
    """
    base = cfg.optim.mup_base_dim
    return 1.0 if base is None else cfg.model.embedding_dim / base


def check_mup(cfg: Config) -> None:
    """Refuses a run of which the widths, or what trains them, would not follow the rule.

    Raises:
      ConfigError: it says which field, and what to change.
    """
    base, model = cfg.optim.mup_base_dim, cfg.model
    if base is None:
        return
    said = f"optim.mup_base_dim={base}"
    if cfg.optim.name not in _OPTIMIZERS:
        raise ConfigError(
            f"{said} scales learning rates as Adam and its kin need it, and optim.name="
            f'"{cfg.optim.name}"; set it to one of {", ".join(_OPTIMIZERS)}, or leave out the base'
        )
    if cfg.finetune.base is not None:
        raise ConfigError(
            f"{said} is for runs that start from random weights, and finetune.base="
            f'"{cfg.finetune.base}" has its own; leave out optim.mup_base_dim'
        )
    for path, is_there in (
        ("model.experts.count", model.experts.count),
        ("model.encoder.num_layers", model.encoder.num_layers),
        ("model.latent.kv_rank", model.latent.kv_rank),
        ("model.classifier.labels", model.classifier.labels),
        ("model.pooler", model.pooler),
        ("model.head", model.head == "mlm" and model.head),
    ):
        if is_there:
            raise ConfigError(f"{said} has no rule for {path}={is_there}; leave out one of the two")
    scale = base / model.embedding_dim
    if not math.isclose(model.logit_scale, scale, rel_tol=1e-6):
        raise ConfigError(
            f"{said} with model.embedding_dim={model.embedding_dim} needs model.logit_scale="
            f"{scale:g} (the one by the other), and it is {model.logit_scale:g}; set it"
        )


def scaled_init(params: Tree, ratio: float) -> Tree:
    """Initial weights [..., I, O], those of matrices in blocks divided by sqrt(m)."""
    return _scaled(params, ratio**-0.5)


def scale_updates(ratio: float) -> optax.GradientTransformation:
    """Divides the direction of matrices in blocks by m; weight decay, added later, stays."""

    def scale(updates: Any, _: Any) -> Any:
        return _scaled(updates, 1.0 / ratio)

    return optax.stateless(scale)


def _scaled(tree: Tree, factor: float) -> Tree:
    def scale(path: Path, leaf: Any) -> Any:
        return leaf * factor if is_in_block(path) and matrix(path) is not None else leaf

    return tree if factor == 1.0 else map_named(scale, tree)
