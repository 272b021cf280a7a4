"""Tokens go to the devices that hold their experts, and results come back.

A device sends a token once to each device that has an expert for it, with those experts' weights,
and gets back the weighted sum of what they gave. Two devices, four experts, two for each token::

    chosen   token 0: 2, 0   token 1: 0, 1   token 2: 3, 2
    sent     to device 0 (experts 0, 1): 0 1 .    to device 1 (experts 2, 3): 0 2 .

Shapes are fixed, so that there is a place for each token that might go: for all of them, or with a
capacity for as many as those experts take, whichever is less. Empty places travel too, as zeros,
but no product is made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from llmasos_jax.parallel.mesh import ways

AXIS = "expert"


@dataclass(frozen=True)
class Choices:
    """The experts of each token, and what their results count.

    Attributes:
      expert_ak: int32 [A, k]; E is none.
      weight_ak: float32 [A, k], 0 for none.
      num_experts: E.
      most: as many of them at most are of an expert; None: all are.
    """

    expert_ak: jax.Array
    weight_ak: jax.Array
    num_experts: int
    most: int | None = None


def exchange(
    apply: Callable[[jax.Array, Choices], jax.Array],
    x_ad: jax.Array,
    choices: Choices,
    mesh: Mesh,
    limit: int | None = None,
) -> jax.Array:
    """What `apply` gives for all experts, when each device has its part of them.

    Runs inside a region that is manual over `expert`.

    Args:
      apply: from tokens [A, D] and the choices of experts that are here, to weighted sums [A, D].
      x_ad: this device's tokens.
      choices: among all experts.
      mesh: `expert` cuts the experts.
      limit: choices of one expert on one device at most; None for no limit.

    Returns:
      This device's tokens' results, [A, D].
    """
    num_devices = ways(mesh, AXIS)
    num_tokens, k = choices.expert_ak.shape
    local = choices.num_experts // num_devices
    places = num_tokens if limit is None else min(num_tokens, local * limit)
    there_ak = choices.expert_ak // local
    device_j = jnp.arange(num_devices, dtype=jnp.int32)
    goes_aj = jnp.any(there_ak[:, :, None] == device_j[None, None], axis=1)
    place_aj = jnp.cumsum(goes_aj, axis=0, dtype=jnp.int32) - goes_aj
    token_js = _tokens(goes_aj, place_aj, places)

    expert_jsk = (
        choices.expert_ak.at[token_js].get(mode="fill", fill_value=choices.num_experts)
        - local * device_j[:, None, None]
    )
    is_there_jsk = (expert_jsk >= 0) & (expert_jsk < local)
    weight_jsk = choices.weight_ak.at[token_js].get(mode="fill", fill_value=0)
    most = num_devices * places * min(k, local)
    sent = (
        x_ad.at[token_js].get(mode="fill", fill_value=0),
        jnp.where(is_there_jsk, expert_jsk, local),
        jnp.where(is_there_jsk, weight_jsk, 0),
    )
    with jax.named_scope("to_experts"):
        x_jsd, expert_jsk, weight_jsk = (_all_to_all(part) for part in sent)
    here = Choices(
        expert_ak=expert_jsk.reshape(-1, k),
        weight_ak=weight_jsk.reshape(-1, k),
        num_experts=local,
        most=most if limit is None else min(most, num_devices * local * limit),
    )
    y_ad = apply(x_jsd.reshape(-1, x_ad.shape[-1]), here)
    with jax.named_scope("from_experts"):
        y_jsd = _all_to_all(y_ad.reshape(num_devices, places, -1))

    return _added(y_jsd, there_ak, place_aj)


def _added(y_jsd: jax.Array, there_ak: jax.Array, place_aj: jax.Array) -> jax.Array:
    """Each token's results, [A, D], added up over the devices that it went to."""
    num_devices, places, _ = y_jsd.shape
    k = there_ak.shape[1]
    # Where a token went to a device for several experts, the sum came back once.
    place_ak = jnp.take_along_axis(place_aj, jnp.minimum(there_ak, num_devices - 1), axis=1)
    is_again_ak = jnp.any(
        (there_ak[:, :, None] == there_ak[:, None]) & jnp.tri(k, k=-1, dtype=bool)[None], axis=2
    )
    came_ak = (there_ak < num_devices) & ~is_again_ak
    row_ak = jnp.where(came_ak, there_ak * places + place_ak, num_devices * places)
    y_rd = y_jsd.reshape(num_devices * places, -1)
    return jnp.sum(y_rd.at[row_ak].get(mode="fill", fill_value=0), axis=1)


def _tokens(goes_aj: jax.Array, place_aj: jax.Array, places: int) -> jax.Array:
    """The token in each place, int32 [devices, places]; the number of tokens where none is."""
    num_tokens, num_devices = goes_aj.shape
    empty = jnp.full((num_devices, places), num_tokens, jnp.int32)
    device_aj = jnp.broadcast_to(jnp.arange(num_devices)[None], goes_aj.shape)
    token_aj = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32)[:, None], goes_aj.shape)
    return empty.at[device_aj, jnp.where(goes_aj, place_aj, places)].set(token_aj, mode="drop")


def _all_to_all(x_js: jax.Array) -> jax.Array:
    """Row j goes to device j, and row j of the result came from it."""
    return lax.all_to_all(x_js, AXIS, split_axis=0, concat_axis=0)
