"""What the backward pass keeps of the forward one, and what it computes again: policies by name.

Chen et al., 2016, arXiv 1604.06174. Gathered weights are never kept: each device would hold the
model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.runtime import Runtime


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """What `remat="none"` keeps."""
    return primitive.name != "all_gather"


_POLICIES: dict[str, Callable | None] = {
    "none": _all_but_gathered,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check_remat(cfg: Config) -> None:
    """Refuses tags that no layer of the model has, so that nothing would be kept by them.

    Raises:
      ConfigError: it says which tag.
    """
    model = cfg.model
    missing = set() if model.is_gated else {"gate"}
    has_mlp = model.experts.shared_ffn_dim or not all(
        map(model.has_experts, range(model.num_layers))
    )
    if not has_mlp:
        missing |= {"gate", "up"}
    for tag in (*cfg.train.remat_save, *cfg.train.remat_offload):
        if tag in missing:
            what = "its MLP is not gated" if not model.is_gated else "all its layers have experts"
            raise ConfigError(
                f'train.remat_save and train.remat_offload: the model has no "{tag}", {what}; take '
                "it out"
            )


def checkpointed(fn: Callable, runtime: Runtime) -> Callable:
    """A block, or a period of them, that keeps of itself what `runtime.remat` says.

    Args:
      fn: from arrays to arrays. What goes into it is kept in any case: the residual stream before
        each block is, unless "block" is among `runtime.remat_offload`.
      runtime: `remat` is "none", "full", "dots", or "tags", which keeps the arrays tagged
        (`runtime.tag`) by the names in `remat_save`, and in the host's memory `remat_offload`.

    Example:
      >>> runtime = Runtime(remat="tags", remat_save=("up",))
      >>> fn = lambda x: jax.numpy.exp(runtime.tag(jax.numpy.sin(x), "up"))
      >>> str(jax.make_jaxpr(jax.grad(checkpointed(fn, runtime)))(1.0)).count("= sin ")
      1
    """
    manual = runtime.manual
    if runtime.remat == "none" and (manual is None or not manual.gathers):
        return fn
    return jax.checkpoint(fn, policy=remat_policy(runtime))


def remat_policy(runtime: Runtime) -> Callable | None:
    """What `jax.checkpoint` is to keep by `runtime.remat`; None is nothing but what goes in."""
    if runtime.remat != "tags":
        return _POLICIES[runtime.remat]
    save, offload = list(runtime.remat_save), list(runtime.remat_offload)
    policies = jax.checkpoint_policies
    if not offload:
        return policies.save_only_these_names(*save)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=save,
        names_which_can_be_offloaded=offload,
        offload_src="device",
        offload_dst="pinned_host",
    )
