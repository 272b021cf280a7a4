"""Optimizers: gradient -> clip -> direction -> weight decay -> learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import OptimConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.train.adafactor import scale_by_adafactor
from llmasos_jax.train.mup import scale_updates
from llmasos_jax.train.numbers import is_zero
from llmasos_jax.train.schedules import build_schedule
from llmasos_jax.train.weights import Path, decay_mask, is_in_block, map_named, matrix
from llmasos_jax.types import Tree

# Adam's updates have an RMS of about 0.2; with Muon's brought to the same, one learning rate and
# one weight decay serve both (Liu et al., 2025, arXiv 2502.16982, eq. 4).
_MUON_RMS = 0.2


def build_optimizer(
    cfg: OptimConfig, steps: int, width_ratio: float = 1.0
) -> optax.GradientTransformation:
    """Returns the optimizer that a config names.

    Weights are told apart by their names (`train/weights.py`), so the tree may be stacked over
    layers or not: the updates are the same.

    Args:
      cfg: `name` is a key of `TABLE`, or `"package.module:name"` of a function `(cfg, schedule)`
        to an Optax transformation from (already clipped) gradients to updates, learning rate and
        weight decay included (`train.weights.decay_mask` is there for it).
      steps: steps of the whole run, for the learning rate's schedule.
      width_ratio: of `train/mup.py`.

    Returns:
      A transformation; `update` needs `params`.

    Raises:
      ConfigError: no such optimizer, or the name gives something else.

    Example:
      >>> import jax.numpy as jnp
      >>> cfg = OptimConfig(name="sgd", learning_rate=0.5, schedule="constant", warmup_steps=0)
      >>> optimizer = build_optimizer(cfg, steps=10)
      >>> params = {"final_norm": {"scale": jnp.ones(2)}}
      >>> grads = {"final_norm": {"scale": jnp.array([0.0, 0.5])}}
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> print(updates["final_norm"]["scale"])
      [-0.   -0.25]
    """
    schedule = build_schedule(cfg, steps)
    clip = [] if cfg.clip_norm is None else [optax.clip_by_global_norm(cfg.clip_norm)]
    if cfg.name not in TABLE:
        made = resolve(cfg.name, TABLE, "optim.name")(cfg, schedule)
        if not isinstance(made, optax.GradientTransformation):
            raise ConfigError(
                f'optim.name="{cfg.name}" gives a {type(made).__name__}; it has to be a function '
                "(cfg, schedule) -> optax.GradientTransformation"
            )
        return optax.chain(*clip, made)
    add_decay = optax.add_decayed_weights(cfg.weight_decay, decay_mask)
    decay = [] if is_zero(cfg.weight_decay) else [add_decay]
    rate = optax.scale_by_learning_rate(schedule)
    by_width = [] if width_ratio == 1.0 else [scale_updates(width_ratio)]
    return optax.chain(*clip, TABLE[cfg.name](cfg), *by_width, *decay, rate)


def adamw(cfg: OptimConfig) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015, arXiv 1412.6980), decay apart (arXiv 1711.05101)."""
    return optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps)


def lion(cfg: OptimConfig) -> optax.GradientTransformation:
    """The sign of a mixed momentum (Chen et al., 2023, arXiv 2302.06675); `eps` has no say."""
    return optax.scale_by_lion(b1=cfg.beta1, b2=cfg.beta2)


def adafactor(cfg: OptimConfig) -> optax.GradientTransformation:
    """See `scale_by_adafactor`; only the learning rate, decay and clipping of the config count."""
    del cfg
    return scale_by_adafactor()


def sgd(cfg: OptimConfig) -> optax.GradientTransformation:
    """Gradient descent with heavy-ball momentum (0 for none)."""
    return optax.identity() if is_zero(cfg.momentum) else optax.trace(decay=cfg.momentum)


def muon(cfg: OptimConfig) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices of the blocks, Adam for all other weights.

    A weight [D, N, H] is one D x NH matrix; each layer of a stack, and each expert, is a matrix of
    its own.
    `momentum` is the matrices', `beta1`, `beta2` and `eps` are Adam's. Updates have Adam's RMS.

    References:
      Jordan et al., 2024, kellerjordan.github.io/posts/muon; Liu et al., 2025, arXiv 2502.16982.
    """
    return optax.partition(
        {
            "matrix": optax.chain(
                contrib.scale_by_muon(
                    beta=cfg.momentum,
                    eps=cfg.eps,
                    weight_dimension_numbers=_muon_dims,  # pyright: ignore[reportArgumentType]
                ),
                optax.stateless(lambda updates, _: map_named(_with_adam_rms, updates)),
            ),
            "other": adamw(cfg),
        },
        lambda params: map_named(_muon_label, params),
    )


TABLE: Mapping[str, Callable[[OptimConfig], optax.GradientTransformation]] = {
    "adamw": adamw,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
    "sgd": sgd,
}


def like_params(
    opt_state: Any,
    shapes: Tree,
    values: Tree,
    default: Any,
    of_rows: Callable[[Any], Any] | None = None,
) -> Any:
    """Gives each leaf of an optimizer's state what the weight that it stands for has (a sharding).

    Args:
      opt_state: state, or its shapes: a tree that holds trees built like the parameters, masked
        or not.
      shapes: the parameters, or their shapes.
      values: one value per parameter; a tree of the same keys.
      default: for leaves that stand for no parameter, or have another shape than it (counters;
        factored moments, which are small).
      of_rows: from a parameter's value to that of a leaf with one number for each row of its last
        axis; None gives those the default.

    Returns:
      A tree like `opt_state`.
    """
    known: dict[Path, tuple[tuple[int, ...], Any]] = {}
    map_named(lambda path, leaf, value: known.update({path: (leaf.shape, value)}), shapes, values)

    def find(path: Any, leaf: Any) -> Any:
        keys = tuple(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
        # The parameter's path ends the state's: ("mu", "periods", "0", "attn", "q").
        for start in range(len(keys)):
            if keys[start:] in known:
                shape, value = known[keys[start:]]
                if of_rows is not None and leaf.shape == (*shape[:-1], 1) != shape:
                    return of_rows(value)
                return value if shape == leaf.shape else default
        return default

    return jax.tree_util.tree_map_with_path(find, opt_state)


def norm_of_updates(updates: Any, params: Tree, platform: str) -> jax.Array:
    """The norm of what was added, which gave `params`.

    On TPU the sum has to read the new weights, too: else the compiler puts it and the moments into
    one pass and the weights into a second one, and 11 arrays of a weight's size cross HBM, not 8.
    """
    if platform == "tpu":
        updates = jax.tree.map(lambda u, p: jnp.where(p == p, u, jnp.nan), updates, params)
    return optax.tree.norm(updates)


def _muon_label(path: Path, _: Any) -> str:
    return "matrix" if is_in_block(path) and matrix(path) is not None else "other"


def _muon_dims(updates: Any) -> Any:
    def dims(path: Path, _: Any) -> contrib.MuonDimensionNumbers:
        in_dims, out_dims = matrix(path) or ((), ())
        return contrib.MuonDimensionNumbers(reduction_axis=in_dims, output_axis=out_dims)

    return map_named(dims, updates)


def _with_adam_rms(path: Path, update: jax.Array) -> jax.Array:
    in_dims, out_dims = matrix(path) or ((), ())
    num_in = math.prod(update.shape[dim] for dim in in_dims)
    num_out = math.prod(update.shape[dim] for dim in out_dims)
    # An orthogonal A x B matrix has an RMS of 1 / sqrt(max(A, B)).
    return update * (_MUON_RMS * math.sqrt(max(num_in, num_out)))
