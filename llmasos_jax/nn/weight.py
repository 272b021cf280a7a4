"""Declares a weight: its shape, its logical axes, how it starts, and how a product reads it."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.nn.runtime import Runtime

# Weights that start random are matrices of products and look-ups; scales and biases stay float32.
RANDOM = ("normal", "residual")

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def weight(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    init: str = "normal",
    num_in: int = 0,
    num_lead: int = 0,
    is_float32: bool = False,
    stack: int | None = None,
) -> Any:
    """A parameter of a module, float32 and zero until `init_params` or a file fills it.

    Modules are built under `nnx.eval_shape`, so the zeros below never take memory.

    Args:
      shape: of one layer's weight.
      axes: logical name of each dimension (see `parallel.rules.Rules`).
      init: "normal", "residual" (normal, smaller by sqrt(2 L)), "fan_in" (normal, of variance 1 / 3
        of the inputs' number), "zeros" or "ones".
      num_in: how many leading dimensions a product contracts; 0 for what is not a product's weight,
        or has its output axis first already.
      num_lead: dimensions before these that number matrices of their own: 1 for experts.
      is_float32: whether the product is float32 whatever the others are.
      stack: layers in one scanned array; adds a leading dimension.
    """
    full = shape if stack is None else (stack, *shape)
    return nnx.Param(
        jnp.zeros(full, jnp.float32),
        axes=axes,
        init=init,
        num_in=num_in,
        num_lead=num_lead,
        is_float32=is_float32,
        eager_sharding=False,
    )


def is_weight(node: Any) -> bool:
    """Whether a node of an NNX state is a parameter."""
    return isinstance(node, nnx.Variable)


def gathered(module: ModuleT, runtime: Runtime) -> ModuleT:
    """The module with each weight whole: the border at which FSDP shards become weights."""
    if runtime.manual is None:
        return module
    graphdef, state = nnx.split(module)
    whole = jax.tree.map(
        lambda v: v.replace(runtime.gather(v[...], v.axes, v.init in RANDOM and not v.is_float32)),
        state,
        is_leaf=is_weight,
    )
    return nnx.merge(graphdef, whole)
