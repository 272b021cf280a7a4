"""What keeps a router's experts equally busy and its logits small, over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.config.schema import ObjectiveConfig
from llmasos_jax.nn.moe import Routing
from llmasos_jax.nn.runtime import Runtime


def router_losses(
    routing: Routing | None, weight_sum: jax.Array, cfg: ObjectiveConfig, runtime: Runtime
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This device's part of the routers' losses, each a mean over the layers that have a router.

    ::

        balance = E sum_e f_e P_e      f_e  share of all choices that fell on expert e
                                       P_e  mean share of e in a token's scores
        z       = mean over tokens of (log sum_e e^logit_e)^2

    `f_e`, `P_e` and the means are over all tokens of the global batch that are not padding, on
    whatever devices: a product of means is not the mean of products. `f_e` has no gradient, so it
    is enough to add it up; `P_e` enters linearly, so each device adds its own tokens' part. The
    balance is 1 where all experts are chosen equally often (k in transformers' Mixtral, which
    counts tokens instead of choices), and rises to E.

    A batch in several parts (`train.accumulate_steps`) takes both over each part: the first part's
    gradient is made before the last one's tokens have chosen. Parts are the same rows on every
    mesh.

    Args:
      routing: sums over this device's tokens, each with a leading axis over layers; None without
        experts.
      weight_sum: this device's tokens in the loss. Results are sums, like the loss they are added
        to: divided by the global `weight_sum` they are the means above.
      cfg: `router_balance` and `router_z` are the weights.
      runtime: knows the other devices.

    Returns:
      What to add to the loss, and for reports "router_balance" and "router_z", unweighted;
      "expert_load", the busiest expert's tokens in units of an even share; and "expert_drops", the
      share of choices that a capacity dropped.

    References:
      Fedus et al., 2021, arXiv 2101.03961, eq. 4; Zoph et al., 2022, arXiv 2202.08906, eq. 5.
    """
    if routing is None:
        return jnp.float32(0.0), {}
    own = lax.stop_gradient((routing.chosen_e, routing.tokens, weight_sum))
    chosen_le, tokens_l, weight = own if runtime.manual is None else runtime.manual.sum(own)
    tokens = jnp.maximum(tokens_l[0], 1.0)
    choices = jnp.maximum(jnp.sum(chosen_le, axis=-1, keepdims=True), 1.0)
    num_experts = chosen_le.shape[-1]
    load_le = chosen_le / choices * num_experts
    balance_l = jnp.sum(load_le * routing.share_e, axis=-1) / tokens
    sums = {
        "router_balance": weight * jnp.mean(balance_l),
        "router_z": weight * jnp.mean(routing.z) / tokens,
        # The same on every device, so each adds its part of the weight.
        "expert_load": weight_sum * jnp.mean(jnp.max(load_le, axis=-1)),
        "expert_drops": weight * jnp.mean(routing.dropped / choices[:, 0]),
    }
    loss = cfg.router_balance * sums["router_balance"] + cfg.router_z * sums["router_z"]
    return loss, jax.tree.map(lax.stop_gradient, sums)
