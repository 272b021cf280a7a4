"""A mixture of experts in place of the MLP: the router, and each expert's share of the tokens.

Every token goes to all experts that the router chooses for it, so a token's result depends on no
other token. Training alone may set a capacity (`Runtime.expert_capacity`), which drops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.nn.adapters import product
from llmasos_jax.nn.exchange import Choices, exchange
from llmasos_jax.nn.experts import assign
from llmasos_jax.nn.mlp import ACTIVATIONS, MLP
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight
from llmasos_jax.parallel.mesh import ways

# Added to the sum that weights are divided by (DeepSeek-V3's released code).
_EPS = 1e-20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """Sums over the tokens of a batch that count, of one layer; all float32.

    Attributes:
      chosen_e: [E], tokens that chose each expert, those that a capacity dropped included.
      share_e: [E], of each token's scores of all experts, divided by their sum.
      z: scalar, squared logarithm of the sum of e^logit over the experts.
      dropped: scalar, choices that a capacity dropped.
      tokens: scalar, tokens.
    """

    chosen_e: jax.Array
    share_e: jax.Array
    z: jax.Array
    dropped: jax.Array
    tokens: jax.Array


class MoE(nnx.Module):
    """sum over the chosen experts of weight * expert(x), plus the shared expert.

    References:
      Shazeer et al., 2017, arXiv 1701.06538; see `config.experts.Experts` for the variants.
    """

    def __init__(self, cfg: ModelConfig, *, stack: int | None = None) -> None:
        experts = cfg.experts
        d, e, f = cfg.embedding_dim, experts.count, cfg.expert_width
        self.experts = experts
        self.act_fn = resolve(cfg.mlp, ACTIVATIONS, "model.mlp")
        make = partial(weight, stack=stack)
        each = partial(make, num_in=1, num_lead=1)
        into, out_of = ("experts", "expert_embed", "ffn"), ("experts", "ffn", "expert_embed")
        # Each device routes its own tokens, so it needs the scores of all experts.
        self.router = make((d, e), ("embed", None), num_in=1, is_float32=True)
        bias = partial(make, (e,), (None,), init="zeros")
        self.router_bias = bias() if experts.router_bias else None
        self.gate = each((e, d, f), into) if cfg.is_gated else None
        self.up = each((e, d, f), into)
        self.down = each((e, f, d), out_of, init="residual")
        width = experts.shared_ffn_dim
        self.shared = MLP(cfg, width=width, has_bias=False, stack=stack) if width else None
        gate = partial(make, (d, 1), ("embed", None), num_in=1)
        self.shared_gate = gate() if experts.shared_gate else None

    def __call__(
        self, x_btd: jax.Array, counted_bt: jax.Array, runtime: Runtime
    ) -> tuple[jax.Array, Routing]:
        """Maps [B, T, D] to [B, T, D].

        Args:
          x_btd: [B, T, D].
          counted_bt: bool [B, T], which tokens the sums are over: not padding. It changes no
            token's result, but padding fills no capacity.
          runtime: how to run.
        """
        bias_e = None if self.router_bias is None else self.router_bias[...]
        with jax.named_scope("router"):
            # One choice that rounding turns over changes a token's result as a whole.
            with jax.default_matmul_precision("highest"):
                x32_btd = x_btd.astype(jnp.float32)
                logits_bte = product(self, "router", "btd,de->bte", x32_btd, runtime)
            weights_btk, chosen_btk, scores_bte = route(self.experts, logits_bte, bias_e)
            kept_btk = _kept(self.experts, chosen_btk, counted_bt, runtime)
            routing = _routing(logits_bte, scores_bte, chosen_btk, kept_btk, counted_bt)
        y_btd = self._chosen(x_btd, weights_btk, chosen_btk, kept_btk, runtime)
        if self.shared is not None:
            y_btd = y_btd + self._shared(self.shared, x_btd, runtime)
        return y_btd, routing

    def _chosen(
        self,
        x_btd: jax.Array,
        weights_btk: jax.Array,
        chosen_btk: jax.Array,
        kept_btk: jax.Array | None,
        runtime: Runtime,
    ) -> jax.Array:
        """The weighted sum of the chosen experts' results, [B, T, D]."""
        b, t, d = x_btd.shape
        num, k = self.experts.count, chosen_btk.shape[-1]
        most = limit = None
        if kept_btk is not None and runtime.expert_capacity is not None:
            weights_btk = jnp.where(kept_btk, weights_btk, 0.0)
            chosen_btk = jnp.where(kept_btk, chosen_btk, num)
            limit = b * _limit(self.experts, t, runtime.expert_capacity, runtime)
            most = min(b * t * k, num * limit)
        choices = Choices(chosen_btk.reshape(b * t, k), weights_btk.reshape(b * t, k), num, most)
        apply, x_ad = partial(self._apply, runtime=runtime), x_btd.reshape(b * t, d)
        manual = runtime.manual
        if manual is None or ways(manual.mesh, "expert") == 1:
            y_ad = apply(x_ad, choices)
        else:
            y_ad = exchange(apply, x_ad, choices, manual.mesh, limit)
        return y_ad.reshape(b, t, d)

    def _apply(self, x_ad: jax.Array, choices: Choices, *, runtime: Runtime) -> jax.Array:
        """The same for tokens [A, D] and the experts that are here."""
        num, most = choices.num_experts, choices.most
        assigned = assign(choices.expert_ak, num, runtime.platform, most)
        dot = partial(product, self, runtime=runtime, assigned=assigned)
        x_rd = assigned.rows_of(x_ad)
        up_rf = dot("up", "rd,edf->rf", x_rd)
        if self.gate is None:
            hidden_rf = self.act_fn(up_rf)
        else:
            hidden_rf = self.act_fn(dot("gate", "rd,edf->rf", x_rd)) * up_rf
        hidden_rf = runtime.place(hidden_rf, None, "ffn")
        y_akd = assigned.choices_of(dot("down", "rf,efd->rd", hidden_rf))
        return jnp.sum(y_akd * choices.weight_ak.astype(y_akd.dtype)[..., None], axis=1)

    def _shared(self, shared: MLP, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
        y_btd = shared(x_btd, runtime)
        if self.shared_gate is None:
            return y_btd
        gate_bto = runtime.dot(
            "btd,do->bto", x_btd, self.shared_gate[...], out_dtype=runtime.act_dtype
        )
        return y_btd * jax.nn.sigmoid(gate_bto)


def route(
    experts: Experts, logits_bte: jax.Array, bias_e: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which experts a token goes to, and with which weights.

    Args:
      experts: how.
      logits_bte: float32 [B, T, E].
      bias_e: float32 [E], added to the scores for the choice; None for none.

    Returns:
      Weights float32 [B, T, k], experts int32 [B, T, k], scores of all experts float32 [B, T, E].

    Example:
      >>> logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))
      >>> weights, chosen, _ = route(Experts(count=3, per_token=2), logits, None)
      >>> [round(float(w), 3) for w in weights[0, 0]], chosen[0, 0].tolist()
      ([0.625, 0.375], [0, 1])
    """
    if experts.router == "sigmoid":
        scores_bte = jax.nn.sigmoid(logits_bte)
    else:
        scores_bte = jax.nn.softmax(logits_bte, axis=-1)
    ranked_bte = scores_bte if bias_e is None else scores_bte + bias_e[None, None]
    if experts.groups > 1:
        ranked_bte = _within_groups(experts, ranked_bte)
    _, chosen_btk = lax.top_k(lax.stop_gradient(ranked_bte), experts.per_token)
    if experts.router == "softmax_chosen":
        chosen_logits_btk = jnp.take_along_axis(logits_bte, chosen_btk, axis=-1)
        return jax.nn.softmax(chosen_logits_btk, -1) * experts.scale, chosen_btk, scores_bte
    weights_btk = jnp.take_along_axis(scores_bte, chosen_btk, axis=-1)
    if experts.normalize:
        weights_btk = weights_btk / (jnp.sum(weights_btk, axis=-1, keepdims=True) + _EPS)
    return weights_btk * experts.scale, chosen_btk, scores_bte


def _within_groups(experts: Experts, ranked_bte: jax.Array) -> jax.Array:
    """The scores, minus infinity outside the groups that a token may choose from."""
    b, t, _ = ranked_bte.shape
    grouped = ranked_bte.reshape(b, t, experts.groups, -1)
    if experts.group_score == "top2":
        group_score_btg = jnp.sum(lax.top_k(grouped, 2)[0], axis=-1)
    else:
        group_score_btg = jnp.max(grouped, axis=-1)
    _, best = lax.top_k(group_score_btg, experts.groups_per_token)
    is_best_btg = jnp.any(best[..., None] == jnp.arange(experts.groups)[None, None, None], axis=2)
    return jnp.where(is_best_btg[..., None], grouped, -jnp.inf).reshape(ranked_bte.shape)


def _limit(experts: Experts, num_tokens: int, capacity: float, runtime: Runtime) -> int:
    """Choices of one sequence that an expert takes; `num_tokens` of it are on this device."""
    parts = 1 if runtime.manual is None else ways(runtime.manual.mesh, "context")
    return math.ceil(capacity * num_tokens * parts * experts.per_token / experts.count)


def _kept(
    experts: Experts, chosen_btk: jax.Array, counted_bt: jax.Array, runtime: Runtime
) -> jax.Array | None:
    """Which choices are kept, bool [B, T, k]: an expert's first ceil(capacity T k / E) of a row.

    Padding is not.
    """
    if runtime.expert_capacity is None:
        return None
    limit = _limit(experts, chosen_btk.shape[1], runtime.expert_capacity, runtime)
    is_chosen_btke = jax.nn.one_hot(chosen_btk, experts.count, dtype=jnp.int32)
    is_chosen_bte = jnp.sum(is_chosen_btke, axis=2) * counted_bt[..., None]
    before_bte = jnp.cumsum(is_chosen_bte, axis=1) - is_chosen_bte
    manual = runtime.manual
    if manual is not None and ways(manual.mesh, "context") > 1:
        # Tokens at earlier positions of the same sequences, on other devices.
        all_cbe = lax.all_gather(jnp.sum(is_chosen_bte, axis=1), "context")
        is_earlier_c = jnp.arange(all_cbe.shape[0]) < lax.axis_index("context")
        before_bte += jnp.sum(all_cbe * is_earlier_c[:, None, None], axis=0)[:, None]
    return (jnp.take_along_axis(before_bte, chosen_btk, axis=-1) < limit) & counted_bt[..., None]


def _routing(
    logits_bte: jax.Array,
    scores_bte: jax.Array,
    chosen_btk: jax.Array,
    kept_btk: jax.Array | None,
    counted_bt: jax.Array,
) -> Routing:
    counted = counted_bt.astype(jnp.float32)
    share_bte = scores_bte / (jnp.sum(scores_bte, axis=-1, keepdims=True) + _EPS)
    num = logits_bte.shape[-1]
    per_choice_btk = jnp.broadcast_to(counted[..., None], chosen_btk.shape)
    chosen_e = jnp.bincount(chosen_btk.reshape(-1), per_choice_btk.reshape(-1), length=num)
    dropped = jnp.float32(0.0) if kept_btk is None else jnp.sum(per_choice_btk * ~kept_btk)
    z_bt = jnp.square(jax.nn.logsumexp(logits_bte, axis=-1))
    return Routing(
        chosen_e=chosen_e,
        share_e=jnp.sum(share_bte * counted[..., None], axis=(0, 1)),
        z=jnp.sum(z_bt * counted),
        dropped=dropped,
        tokens=jnp.sum(counted),
    )
