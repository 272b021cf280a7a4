"""Where the TPU compiler shall not fuse.

It likes to compute a norm's or an activation's gradient inside of the product beside it, once for
each block of the product, and such a product then takes up to twice its time by the compiler's own
estimate (`docs/sharding.md`). Element-wise work apart is read and written once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def fence_gradient(x: jax.Array) -> jax.Array:
    """`x`, whose gradient is a whole array before anything reads it. No forward-mode derivatives.

    Example:
      >>> print(jax.grad(lambda x: jnp.sin(fence_gradient(x)))(0.0))
      1.0
    """
    return x


def _fence_bwd(_: None, grad: jax.Array) -> tuple[jax.Array]:
    return (lax.optimization_barrier(grad),)


fence_gradient.defvjp(lambda x: (x, None), _fence_bwd)


def gated(act_fn: Callable[[jax.Array], jax.Array], gate: jax.Array, up: jax.Array) -> jax.Array:
    """Gives act_fn(gate) * up; both gradients come from one pass in float32, apart from products.

    The backward pass keeps `gate` and `up`, and nothing that is between: of use on a CPU too.

    Example:
      >>> pull = jax.vjp(partial(gated, jax.nn.relu), jnp.float32(2.0), jnp.float32(3.0))[1]
      >>> print(*pull(jnp.float32(1.0)))
      3.0 2.0
    """
    return _gated(act_fn, gate, up)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gated(act_fn: Any, gate: jax.Array, up: jax.Array) -> jax.Array:
    return act_fn(gate) * up


def _gated_fwd(act_fn: Any, gate: jax.Array, up: jax.Array) -> tuple[jax.Array, Any]:
    return act_fn(gate) * up, (gate, up)


def _gated_bwd(act_fn: Any, kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up, grad = (x.astype(jnp.float32) for x in (*kept, lax.optimization_barrier(grad)))
    found = jax.vjp(lambda gate, up: act_fn(gate) * up, gate, up)[1](grad)
    return lax.optimization_barrier(
        tuple(new.astype(like.dtype) for new, like in zip(found, kept, strict=True))
    )


_gated.defvjp(_gated_fwd, _gated_bwd)
