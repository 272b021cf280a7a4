"""A mixture of experts as ONNX nodes: a loop over experts, each with the tokens that chose it."""

from __future__ import annotations

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.interop.onnx.graph import Graph
from llmasos_jax.interop.onnx.parts import activation, mlp, product

_EPS = 1e-20  # as nn.moe adds it


def mixture(g: Graph, cfg: ModelConfig, x: str, name: str) -> str:
    """The weighted sum of the chosen experts, plus the shared expert; [B, T, D]."""
    experts, d = cfg.experts, cfg.embedding_dim
    x_ad = g.op("Reshape", x, g.ints(-1, d))
    weights, chosen = _route(g, cfg, x_ad, name)
    y = g.op("Reshape", _each_expert(g, cfg, x_ad, weights, chosen, name), g.op("Shape", x))
    if experts.shared_ffn_dim:
        shared = mlp(g, cfg, x, f"{name}.shared", experts.shared_ffn_dim, False)
        if experts.shared_gate:
            gate = product(g, x, f"{name}.shared_gate", d, 1, None)
            shared = g.op("Mul", shared, g.op("Sigmoid", gate))
        y = g.op("Add", y, shared)
    return y


def _route(g: Graph, cfg: ModelConfig, x: str, name: str) -> tuple[str, str]:
    """Weights float32 and experts int64, each [A, k], of tokens [A, D]."""
    experts = cfg.experts
    logits = product(g, x, f"{name}.router", cfg.embedding_dim, experts.count, None)
    if experts.router == "sigmoid":
        scores = g.op("Sigmoid", logits)
    else:
        scores = g.op("Softmax", logits, axis=-1)
    ranked = scores
    if experts.router_bias:
        ranked = g.op("Add", scores, g.weight(f"{name}.router_bias", experts.count))
    if experts.groups > 1:
        ranked = _within_groups(g, cfg, ranked)
    chosen = g.ops("TopK", 2, ranked, g.ints(experts.per_token), axis=-1)[1]
    if experts.router == "softmax_chosen":
        picked = g.op("GatherElements", logits, chosen, axis=1)
        weights = g.op("Softmax", picked, axis=-1)
    else:
        weights = g.op("GatherElements", scores, chosen, axis=1)
        if experts.normalize:
            total = g.op("ReduceSum", weights, g.ints(-1), keepdims=1)
            weights = g.op("Div", weights, g.op("Add", total, g.constant(_EPS)))
    return g.op("Mul", weights, g.constant(experts.scale)), chosen


def _within_groups(g: Graph, cfg: ModelConfig, ranked: str) -> str:
    """The scores [A, E], minus infinity outside the groups that a token may choose from."""
    experts = cfg.experts
    grouped = g.op("Reshape", ranked, g.ints(-1, experts.groups, experts.count // experts.groups))
    if experts.group_score == "top2":
        best_two = g.ops("TopK", 2, grouped, g.ints(2), axis=-1)[0]
        score = g.op("ReduceSum", best_two, g.ints(-1), keepdims=0)
    else:
        score = g.op("ReduceMax", grouped, g.ints(-1), keepdims=0)
    best = g.ops("TopK", 2, score, g.ints(experts.groups_per_token), axis=-1)[1]
    numbers = np.arange(experts.groups, dtype=np.int64)[None, None]
    is_best = g.op("Equal", g.op("Unsqueeze", best, g.ints(2)), g.constant(numbers, np.int64))
    num_best = g.op("ReduceSum", _as_int(g, is_best), g.ints(1), keepdims=0)
    kept = g.op("Cast", g.op("Unsqueeze", num_best, g.ints(2)), to=g.onnx.TensorProto.BOOL)
    inside = g.op("Where", kept, grouped, g.constant(-np.inf))
    return g.op("Reshape", inside, g.ints(-1, experts.count))


def _as_int(g: Graph, x: str) -> str:
    return g.op("Cast", x, to=g.onnx.TensorProto.INT64)


def _each_expert(g: Graph, cfg: ModelConfig, x: str, weights: str, chosen: str, name: str) -> str:
    """The chosen experts' weighted sum [A, D]; an expert without tokens is not read."""
    d = cfg.embedding_dim
    stem = g.op("Identity", x)  # a name of its own for what stands inside
    body, then, other = g.inside(), g.inside(), g.inside()
    number, going, so_far = (f"{stem}/{part}" for part in ("expert", "going", "so_far"))
    is_chosen = body.op("Equal", chosen, number)
    of_token = body.op("ReduceSum", _as_int(body, is_chosen), body.ints(1), keepdims=0)
    count = body.op("ReduceSum", of_token, body.ints(0), keepdims=0)
    is_any = body.op("Greater", count, body.constant(0, np.int64))
    shares = body.op("Where", is_chosen, weights, body.constant(0.0))
    share = body.op("ReduceSum", shares, body.ints(1), keepdims=1)

    rows = then.op("Squeeze", then.op("NonZero", of_token), then.ints(0))
    y = _expert(then, cfg, then.op("Gather", x, rows), number, name)
    y = then.op("Mul", y, then.op("Gather", share, rows))
    places = then.op("Unsqueeze", rows, then.ints(1))
    added = then.op("ScatterND", so_far, places, y, reduction="add")
    same = other.op("Identity", so_far)
    branches = {
        key: branch.body(key, [], [branch.value(out, "float32", None, d)])
        for key, branch, out in (("then_branch", then, added), ("else_branch", other, same))
    }
    after = body.op("If", is_any, **branches)
    on = body.op("Identity", going)
    loop = body.body(
        "experts",
        [
            body.value(number, "int64"),
            body.value(going, "bool"),
            body.value(so_far, "float32", None, d),
        ],
        [body.value(on, "bool"), body.value(after, "float32", None, d)],
    )
    zeros = g.op("ConstantOfShape", g.op("Shape", x))
    steps = g.constant(cfg.experts.count, np.int64)
    return g.op("Loop", steps, g.constant(True, np.bool_), zeros, body=loop)


def _expert(g: Graph, cfg: ModelConfig, x: str, number: str, name: str) -> str:
    """One expert's MLP of its rows [R, D]."""
    e, d, f = cfg.experts.count, cfg.embedding_dim, cfg.expert_width

    def own(part: str, num_in: int, num_out: int) -> str:
        key = f"{name}.{part}"
        weight = g.op("Gather", g.weight(key, e, num_in, num_out, wide=False), number)
        return g.widened(weight, key)

    up = g.op("MatMul", x, own("up", d, f))
    if cfg.is_gated:
        hidden = g.op("Mul", activation(g, cfg.mlp, g.op("MatMul", x, own("gate", d, f))), up)
    else:
        hidden = activation(g, cfg.mlp, up)
    return g.op("MatMul", hidden, own("down", f, d))
