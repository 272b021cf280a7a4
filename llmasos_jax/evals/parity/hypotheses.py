"""What is tried on one model, at the first place where it differs, until it agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llmasos_jax.config.build import fields_of
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.errors import ConfigError
from llmasos_jax.evals.parity.sides import EMBEDDING, FINAL_NORM, LOGITS, Change, Leaves, in_stack
from llmasos_jax.evals.parity.weights import ROPE_LAYOUT, LeafDifference
from llmasos_jax.models.layout import ENCODER

HINTS = {
    "rope_interleaved": ROPE_LAYOUT,
    "rope_theta": "rope base: another rope_theta",
    "rope_theta_local": "rope base of the layers with a window",
    "rope_fraction": "rope width: another share of each head is rotated",
    "rope_scaling": "rope scaling: dropped, or another one",
    "position": "positions: another kind",
    "norm_eps": "eps: another number is added to the variance of a norm",
    "norm_unit_offset": "norm offset: a norm multiplies by 1 + scale in one model, by scale in the "
    "other",
    "norm": "norm: RMSNorm or LayerNorm",
    "norm_placement": "norm placement: before or after attention and MLP",
    "qk_norm": "norm of queries and keys: over each head, or over all of them",
    "block": "block: attention and MLP one after the other, or side by side",
    "attention_windows": "attention window: dropped, or of another width or layer",
    "attention_scale": "attention scale: what scores are multiplied by",
    "attention_soft_cap": "soft cap of the attention scores",
    "causal": "causal: whether a token sees what follows it",
    "mlp": "activation: exact or tanh GELU, or another function",
    "head": "output layer: an MLM head (transform, norm, bias) in one model, one product in the "
    "other",
    "tie_embeddings": "tied head: the output layer is the embedding table in one model, a matrix "
    "of its own in the other",
    "embedding_scale": "embedding scale: embeddings are multiplied by another number (Gemma: the "
    "square root of the width)",
    "logit_scale": "logit scale",
    "logit_soft_cap": "logit soft cap",
    "num_kv_heads": "head order: queries are grouped to keys in another way",
    "qkv_bias": "bias of queries, keys and values",
    "attention_out_bias": "bias of the attention's output",
    "mlp_bias": "bias of the MLP",
    "experts": "experts: how the router chooses and weighs",
    "latent": "latent attention",
    "final_norm": "final norm: there or not",
    "embedding_norm": "norm after the embedding: there or not",
}
_THETAS = (10_000.0, 500_000.0, 1_000_000.0)
_EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8)
_TURNED = {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "geglu": "geglu_tanh", "geglu_tanh": "geglu"}


def config_differences(a: ModelConfig | None, b: ModelConfig | None) -> list[str]:
    """The fields in which two models differ: `"norm_eps: 1e-05 -> 1e-06"`."""
    if a is None or b is None:
        return []
    left, right = dict(fields_of(a)), dict(fields_of(b))
    return [f"{name}: {v!r} -> {right[name]!r}" for name, v in left.items() if v != right[name]]


def changes(
    place: str,
    own: ModelConfig,
    other: ModelConfig | None,
    weights: Sequence[LeafDifference],
    other_leaves: Callable[[str], Leaves] | None,
) -> Iterator[Change]:
    """What to try, the likeliest first.

    Args:
      place: the first place that differs.
      own: the parameters of the model that is changed.
      other: those of the one that it is to agree with, if known.
      weights: those that differ, there and elsewhere.
      other_leaves: reads a part of the other's weights, if it has any.
    """
    fields = _differing(own, other)
    fill = None if other_leaves is None else _filling(other_leaves)
    for name, value in fields.items():
        yield from _with(own, name, value, fill)
    here = [leaf for leaf in weights if is_at(leaf.name, place)]
    if other_leaves is not None and here:
        for leaf in here:
            take = _taking(other_leaves, _alike([leaf], weights))
            hint = f"weight: {leaf.name} {leaf.how}" + (f" ({leaf.hint})" if leaf.hint else "")
            yield Change(f"{leaf.name} of the other model", hint, None, take)
        take = _taking(other_leaves, _alike(here, weights))
        yield Change("the other model's weights", _together(here), None, take)
        if fields:
            text = f"{', '.join(fields)} and weights together"
            yield from _with(own, f"the other's {text}", fields, take, text)
    if len(fields) > 1:
        names = ", ".join(fields)
        yield from _with(own, names, fields, fill, f"several options at once: {names}")
    yield from _usual(place, own)


def is_at(leaf: str, place: str) -> bool:
    """Whether a weight is read at a place."""
    inner, stem = in_stack(place)
    if inner == EMBEDDING:
        return leaf.startswith("embed.")
    part = {FINAL_NORM: (f"{stem}final_norm.",), LOGITS: ("embed.", "head.")}
    # One table of relative positions is read by all blocks of a stack.
    layer = (f"{stem}layers.{inner.removeprefix('layer ')}.", f"{stem}relative.")
    return leaf.startswith(part.get(inner, layer))


def _alike(leaves: Sequence[LeafDifference], weights: Sequence[LeafDifference]) -> set[str]:
    """The names of these weights, and of those that differ in the same place of other layers."""
    kinds = {_kind(leaf.name) for leaf in leaves}
    return {weight.name for weight in weights if _kind(weight.name) in kinds}


def _kind(name: str) -> str:
    inner = name.removeprefix(f"{ENCODER}.")
    if not inner.startswith("layers."):
        return name
    return name.removesuffix(inner) + inner.split(".", 2)[2]


def _together(leaves: Sequence[LeafDifference]) -> str:
    names = ", ".join(leaf.name for leaf in leaves[:4]) + (" ..." if len(leaves) > 4 else "")
    hints = {leaf.hint for leaf in leaves}
    hint = hints.pop() if len(hints) == 1 else ""
    return f"{hint} (in {names})" if hint else f"weights: {names}"


def _differing(own: ModelConfig, other: ModelConfig | None) -> dict[str, Any]:
    if other is None:
        return {}
    names = [field.name for field in dataclasses.fields(own)]
    return {n: getattr(other, n) for n in names if getattr(other, n) != getattr(own, n)}


def _with(
    own: ModelConfig, name: str, value: Any, edit: Any = None, hint: str | None = None
) -> Iterator[Change]:
    """A change of one field (or, with a dict, of several); none where the result is no model."""
    values = value if hint is not None and isinstance(value, dict) else {name: value}
    try:
        config = own.replace(**values)
    except ConfigError:
        return
    if config == own:
        return
    what = name if values is value else f"{name}={_shown(value)}"
    yield Change(what, hint or HINTS.get(name, name), config, edit)


def _shown(value: Any) -> str:
    if isinstance(value, RopeScaling):
        return repr(value.kind)
    if dataclasses.is_dataclass(value):
        return "the other model's"
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _usual(place: str, own: ModelConfig) -> Iterator[Change]:
    """Mistakes that conversions make, for when the other side shows no options."""
    if in_stack(place)[0] == EMBEDDING:
        for scale in (own.embedding_dim**0.5, 1.0):
            yield from _with(own, "embedding_scale", scale)
        if own.position == "learned":
            for rows in (1, 2):
                text = f"positions: the table begins {rows} rows late"
                yield Change(f"positions + {rows}", text, None, _rolled(rows))
    if place == LOGITS:
        yield from _usual_logits(own)
        return
    for eps in dict.fromkeys((*_EPSILONS, own.norm_eps * 10, own.norm_eps / 10)):
        yield from _with(own, "norm_eps", eps)
    yield from _with(own, "norm_unit_offset", not own.norm_unit_offset)
    if in_stack(place)[0] not in (EMBEDDING, FINAL_NORM):
        yield from _usual_block(own)
    yield Change("norm scales + 1", HINTS["norm_unit_offset"], None, _norms_moved(1.0))
    yield Change("norm scales - 1", HINTS["norm_unit_offset"], None, _norms_moved(-1.0))


def _usual_logits(own: ModelConfig) -> Iterator[Change]:
    yield from _with(own, "tie_embeddings", True)
    yield from _with(own, "logit_soft_cap", None)
    for cap in (30.0, 50.0):
        yield from _with(own, "logit_soft_cap", cap)
    for scale in (1.0, own.embedding_dim**-0.5):
        yield from _with(own, "logit_scale", scale)


def _usual_block(own: ModelConfig) -> Iterator[Change]:
    if own.position == "rope":
        yield from _with(own, "rope_interleaved", not own.rope_interleaved)
        for part in ("q", "k"):
            for back, arrow in ((False, "halves -> neighbours"), (True, "neighbours -> halves")):
                what = f"rows of attn.{part} permuted ({arrow})"
                yield Change(what, ROPE_LAYOUT, None, _rope_rows(part, back=back))
        yield from _with(own, "rope_scaling", RopeScaling())
        for theta in _THETAS:
            yield from _with(own, "rope_theta", theta)
        yield from _with(own, "rope_theta_local", None)
    if own.mlp in _TURNED:
        yield from _with(own, "mlp", _TURNED[own.mlp])
    if any(own.attention_windows):
        yield from _with(own, "attention_windows", (None,))
    if own.attention_soft_cap is not None:
        yield from _with(own, "attention_soft_cap", None)
    for scale in (None, 1.0, (own.embedding_dim / own.query_heads) ** -0.5):
        yield from _with(own, "attention_scale", scale)
    grouped = own.query_heads // own.kv_heads
    if 1 < grouped and own.kv_heads > 1:
        yield Change("queries in another grouping", HINTS["num_kv_heads"], None, _regrouped(own))
    for one, two in (("attn.q", "attn.k"), ("attn.k", "attn.v"), ("mlp.gate", "mlp.up")):
        hint = f"weights exchanged: {one} and {two}"
        yield Change(f"{one} and {two} exchanged", hint, None, _exchanged(one, two))
    for name in ("qkv_bias", "attention_out_bias", "mlp_bias"):
        if getattr(own, name):
            yield from _with(own, name, False)


def _filling(read: Callable[[str], Leaves]) -> Callable[[str, Leaves], Leaves]:
    """Takes from the other model what this one lacks (a head, a bias) or has in another shape."""

    def edit(part: str, leaves: Leaves) -> Leaves:
        theirs = read(part)
        fits = {n: x for n, x in leaves.items() if n not in theirs or theirs[n].shape == x.shape}
        return {**theirs, **fits}

    return edit


def _taking(read: Callable[[str], Leaves], names: set[str]) -> Callable[[str, Leaves], Leaves]:
    def edit(part: str, leaves: Leaves) -> Leaves:
        mine = {name for name in names if name.startswith(f"{part}.")}
        if not mine:
            return leaves
        theirs = read(part)
        taken = {name.removeprefix(f"{part}.") for name in mine}
        return {**leaves, **{name: theirs[name] for name in taken if name in theirs}}

    return edit


def _edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    def edit(part: str, leaves: Leaves) -> Leaves:
        del part
        return {n: change(x) if n == name else x for n, x in leaves.items()}

    return edit


def _rolled(rows: int) -> Any:
    return _edit("positions", lambda x: np.roll(x, -rows, axis=0))


def _rope_rows(part: str, *, back: bool) -> Any:
    def turn(x: np.ndarray) -> np.ndarray:
        order = np.arange(x.shape[-1]).reshape(2, -1).T.reshape(-1)
        return x[..., np.argsort(order) if back else order]

    def edit(_: str, leaves: Leaves) -> Leaves:
        names = (f"attn.{part}", f"attn.{part}_bias")
        return {n: turn(x) if n in names else x for n, x in leaves.items()}

    return edit


def _regrouped(cfg: ModelConfig) -> Any:
    k, n = cfg.kv_heads, cfg.query_heads

    def edit(_: str, leaves: Leaves) -> Leaves:
        order = np.arange(n).reshape(n // k, k).T.reshape(-1)
        turned = {"attn.q": lambda x: x[:, order], "attn.o": lambda x: x[order]}
        return {name: turned.get(name, lambda x: x)(x) for name, x in leaves.items()}

    return edit


def _exchanged(one: str, two: str) -> Any:
    def edit(_: str, leaves: Leaves) -> Leaves:
        if one not in leaves or two not in leaves or leaves[one].shape != leaves[two].shape:
            raise KeyError(one)
        return {**leaves, one: leaves[two], two: leaves[one]}

    return edit


def _norms_moved(by: float) -> Any:
    def edit(part: str, leaves: Leaves) -> Leaves:
        is_norm = lambda n: n.endswith("norm.scale") or (n == "scale" and "norm" in part)
        return {n: x + np.float32(by) if is_norm(n) else x for n, x in leaves.items()}

    return edit
