"""bfloat16 weights: with a float32 copy that the optimizer keeps, or rounded at random.

A bfloat16 number moves in steps of 2^-8 of itself, an update is often less: rounded to the nearest
it is lost, every time. The master copy adds up what the weights cannot hold, and after each step
the weights are exactly the copy, rounded. Without one, the sum of weight and update is rounded up
or down at random, so that updates arrive on average (Gupta et al., 2015, arXiv 1502.02551).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llmasos_jax.nn.noise import round_at_random
from llmasos_jax.types import Tree


class MasterState(NamedTuple):
    """The float32 copy of the narrow weights, nothing in place of others; and the optimizer's.

    Checkpoints are read by the name "opt_state/master" (`checkpoint.stored.MASTERS`).
    """

    master: Any
    inner: Any


def widen(params: Tree) -> Tree:
    """All weights in float32."""
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)


def narrow(params: Tree, is_narrow: Tree) -> Tree:
    """Rounds those weights to bfloat16, to the nearest, that are to be so."""
    return jax.tree.map(lambda p, yes: p.astype(jnp.bfloat16) if yes else p, params, is_narrow)


def with_master(
    optimizer: optax.GradientTransformation, is_narrow: Tree
) -> optax.GradientTransformation:
    """An optimizer that remembers in float32 the weights that the step has in bfloat16.

    Args:
      optimizer: any; it sees the float32 weights alone.
      is_narrow: which weights are bfloat16, a tree of booleans.

    Returns:
      A transformation to be used with `next_params`: `init` takes float32 weights.
    """

    def keep(params: Any) -> Any:
        return jax.tree.map(lambda p, yes: p if yes else optax.MaskedNode(), params, is_narrow)

    def init(params: optax.Params) -> MasterState:
        return MasterState(keep(params), optimizer.init(params))

    def update(
        updates: optax.Updates, state: MasterState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MasterState]:
        whole = join(params, state.master)
        updates, inner = optimizer.update(updates, state.inner, whole)
        return updates, MasterState(keep(optax.apply_updates(whole, updates)), inner)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def next_params(params: Tree, updates: Any, opt_state: Any, step: jax.Array) -> Tree:
    """The weights after an update, each in the dtype that it had.

    Args:
      params: before it.
      updates: float32, what the optimizer gave.
      opt_state: what it gave with them; `MasterState` has the narrow weights' new values.
      step: int32, another one each time: what is rounded at random depends on it.
    """
    if isinstance(opt_state, MasterState):
        whole = join(optax.apply_updates(widen(params), updates), opt_state.master)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), whole, params)

    def add(param: jax.Array, update: jax.Array) -> jax.Array:
        new = param.astype(jnp.float32) + update
        return round_at_random(new, step) if param.dtype == jnp.bfloat16 else new

    return jax.tree.map(add, params, updates)


def join(params: Any, master: Any) -> Any:
    """The float32 weights: the copies where there are some."""
    return jax.tree.map(
        lambda p, kept: p if isinstance(kept, optax.MaskedNode) else kept, params, master
    )
