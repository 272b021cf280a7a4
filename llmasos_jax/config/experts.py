"""A mixture of experts in place of the MLP."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_finite, require_one_of, require_positive
from llmasos_jax.errors import ConfigError

ROUTERS = ("softmax", "softmax_chosen", "sigmoid")
GROUP_SCORES = ("max", "top2")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP (Shazeer et al., 2017, arXiv 1701.06538).

    Each expert is a gated or plain MLP of the model's kind, without biases. Every token goes to all
    experts that the router chooses for it: none is dropped, so a token's result depends on no other
    token.

    Attributes:
      count: experts E to choose from; 0 means a plain MLP in every layer.
      per_token: experts k that one token goes to.
      ffn_dim: width of one expert; None means the model's F.
      dense_layers: layers that keep a plain MLP of the model's F.
      router: weights from the scores of all experts: "softmax" over all of them and then the
        choice (Qwen, DeepSeek-V2), "softmax_chosen" over the chosen ones alone (Mixtral, Jiang et
        al., 2024, arXiv 2401.04088), "sigmoid" of each (DeepSeek-V3, 2024, arXiv 2412.19437).
      normalize: whether the weights of the chosen experts are divided by their sum.
      scale: multiplies the weights, after `normalize`.
      router_bias: whether a bias per expert is added to the scores for the choice alone, not to
        the weights (Wang et al., 2024, arXiv 2408.15664).
      groups: groups of neighbouring experts; 1 for none (DeepSeek-V2, 2024, arXiv 2405.04434).
      groups_per_token: groups that one token may choose from.
      group_score: what ranks groups: "max" of the scores in it, or "top2", the sum of its best two.
      shared_ffn_dim: width of the shared expert that every token goes through; 0 for none (Dai et
        al., 2024, arXiv 2401.06066). Several shared experts are one of their summed width.
      shared_gate: whether a sigmoid of one product multiplies the shared expert (Qwen1.5-MoE).
    """

    count: int = 0
    per_token: int = 2
    ffn_dim: int | None = None
    dense_layers: tuple[int, ...] = ()
    router: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    router_bias: bool = False
    groups: int = 1
    groups_per_token: int = 1
    group_score: str = "max"
    shared_ffn_dim: int = 0
    shared_gate: bool = False


def check_experts(experts: Experts, num_layers: int) -> None:
    """Raises ConfigError for the first field that breaks a rule."""
    path = "model.experts"
    require_finite(path, experts)
    require_one_of(f"{path}.router", experts.router, ROUTERS)
    require_one_of(f"{path}.group_score", experts.group_score, GROUP_SCORES)
    for name in ("per_token", "ffn_dim", "groups", "groups_per_token"):
        if getattr(experts, name) is not None:
            require_positive(f"{path}.{name}", getattr(experts, name))
    for name in ("count", "shared_ffn_dim"):
        if getattr(experts, name) < 0:
            raise ConfigError(f"{path}.{name}={getattr(experts, name)} must be 0 or more")
    if experts.count == 0:
        if experts != Experts():
            raise ConfigError(
                f"{path}.count=0 is a plain MLP, other fields of model.experts are set; set the "
                "count too, or leave them at their defaults"
            )
        return
    _check_groups(experts)
    for layer in experts.dense_layers:
        if not 0 <= layer < num_layers:
            raise ConfigError(
                f"{path}.dense_layers names layer {layer}, the model has 0 to {num_layers - 1}"
            )
    if sorted(set(experts.dense_layers)) != list(experts.dense_layers):
        raise ConfigError(f"{path}.dense_layers={experts.dense_layers} must be rising, each once")
    if experts.shared_gate and not experts.shared_ffn_dim:
        raise ConfigError(f"{path}.shared_gate needs a shared expert; set shared_ffn_dim")


def _check_groups(experts: Experts) -> None:
    path = "model.experts"
    if experts.count % experts.groups:
        raise ConfigError(
            f"{path}.count={experts.count} is not divisible by groups={experts.groups}"
        )
    if experts.groups_per_token > experts.groups:
        raise ConfigError(
            f"{path}.groups_per_token={experts.groups_per_token} is above groups={experts.groups}"
        )
    members = experts.count // experts.groups
    if experts.groups > 1 and experts.group_score == "top2" and members < 2:
        raise ConfigError(f'{path}.group_score="top2" needs groups of at least 2 experts')
    reachable = experts.groups_per_token * members
    if experts.per_token > reachable:
        raise ConfigError(
            f"{path}.per_token={experts.per_token} is above the {reachable} experts that a token "
            "may choose from"
        )
