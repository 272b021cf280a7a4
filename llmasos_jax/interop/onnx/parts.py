"""The parts of a block as ONNX nodes: products, norms, activations, MLPs, rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.interop.onnx.graph import Graph
from llmasos_jax.nn.rope import frequencies

_KINDS = {
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "reglu": "relu",
}
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", *_KINDS)
NORMS = ("rmsnorm", "layernorm")


def product(g: Graph, x: str, weight: str, num_in: int, num_out: int, bias: str | None) -> str:
    """[..., in] times a weight [in, out], and a bias [out] where there is one."""
    y = g.op("MatMul", x, g.weight(weight, num_in, num_out))
    return y if bias is None else g.op("Add", y, g.weight(bias, num_out))


def activation(g: Graph, kind: str, x: str) -> str:
    """The function of an MLP of the kind that `ModelConfig.mlp` names."""
    kind = _KINDS.get(kind, kind)
    if kind == "relu":
        return g.op("Relu", x)
    if kind == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    return g.op("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")


def norm(g: Graph, cfg: ModelConfig, x: str, name: str, width: int, *, bias: bool = True) -> str:
    """The model's norm over the last axis, of `width` numbers."""
    scale = g.weight(f"{name}.scale", width)
    if cfg.norm_unit_offset:
        scale = g.op("Add", scale, g.constant(1.0))
    if cfg.norm == "rmsnorm":
        return rms_norm(g, x, scale, cfg.norm_eps)
    has_bias = bias and cfg.norm_bias
    centred = g.op("Sub", x, _mean(g, x))
    y = rms_norm(g, centred, scale, cfg.norm_eps)
    return g.op("Add", y, g.weight(f"{name}.bias", width)) if has_bias else y


def rms_norm(g: Graph, x: str, scale: str, eps: float) -> str:
    """Gives x / sqrt(mean(x^2) + eps) * scale, over the last axis."""
    square = g.op("Add", _mean(g, g.op("Mul", x, x)), g.constant(eps))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", square)), scale)


def _mean(g: Graph, x: str) -> str:
    return g.op("ReduceMean", x, g.ints(-1), keepdims=1)


def mlp(g: Graph, cfg: ModelConfig, x: str, name: str, width: int, has_bias: bool) -> str:
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x))."""
    d, bias = cfg.embedding_dim, lambda part: f"{name}.{part}_bias" if has_bias else None
    up = product(g, x, f"{name}.up", d, width, bias("up"))
    if cfg.is_gated:
        gate = product(g, x, f"{name}.gate", d, width, bias("gate"))
        hidden = g.op("Mul", activation(g, cfg.mlp, gate), up)
    else:
        hidden = activation(g, cfg.mlp, up)
    return product(g, hidden, f"{name}.down", width, d, bias("down"))


def soft_cap(g: Graph, x: str, cap: float | None) -> str:
    """Gives c tanh(x / c); x itself where there is no cap."""
    if cap is None:
        return x
    turned = g.op("Tanh", g.op("Div", x, g.constant(cap)))
    return g.op("Mul", turned, g.constant(cap))


@dataclass(frozen=True)
class Turn:
    """Names of sine and cosine, each [B, T, 1, R/2]."""

    sin: str
    cos: str


def turns(g: Graph, cfg: ModelConfig, positions: str, mask: str | None) -> dict[str, Turn]:
    """Rotary angles by name, as `nn.rope.rotations` has them.

    Args:
      g: the graph.
      cfg: the model.
      positions: int64 [B, T].
      mask: int64 [B, T], 1 for tokens; None where all are.
    """
    if cfg.position != "rope":
        return {}
    width, theta, scaling = cfg.rope_width, cfg.rope_theta, cfg.rope_scaling
    inverse, multiplier = frequencies(width, theta, scaling)
    name = g.constant(inverse[None, None, None])
    if scaling.kind == "longrope":
        long, _ = frequencies(width, theta, scaling, is_long=True)
        name = g.op("Where", _is_long(g, cfg, positions, mask), g.constant(long), name)
    places = g.op("Cast", positions, to=g.onnx.TensorProto.FLOAT)
    places = g.op("Unsqueeze", places, g.ints(2, 3))
    found = {"global": _turn(g, places, name, multiplier)}
    if cfg.rope_theta_local is not None:
        local, _ = frequencies(width, cfg.rope_theta_local, RopeScaling())
        found["local"] = _turn(g, places, g.constant(local[None, None, None]), 1.0)
    return found


def _is_long(g: Graph, cfg: ModelConfig, positions: str, mask: str | None) -> str:
    """Whether a row's tokens reach past the first context, bool [B, 1, 1, 1].

    A prompt's longest position chooses for all of it; of one token alone it is its own.
    """
    seen = positions if mask is None else g.op("Mul", positions, mask)
    last = g.op("ReduceMax", seen, g.ints(1), keepdims=1)
    most = g.constant((cfg.rope_scaling.original_length or 0) - 1, np.int64)
    return g.op("Unsqueeze", g.op("Greater", last, most), g.ints(2, 3))


def _turn(g: Graph, places: str, inverse: str, multiplier: float) -> Turn:
    angles = g.op("Mul", places, inverse)
    sin, cos = g.op("Sin", angles), g.op("Cos", angles)
    if multiplier == 1.0:
        return Turn(sin, cos)
    times = g.constant(multiplier)
    return Turn(g.op("Mul", sin, times), g.op("Mul", cos, times))


def rotate(g: Graph, cfg: ModelConfig, x: str, turn: Turn, width: int) -> str:
    """Rotates the first `rope_width` of the `width` numbers of each head, [B, T, N, width]."""
    turned, rest = cfg.rope_width, width - cfg.rope_width
    tail = []
    if rest:
        x, last = g.ops("Split", 2, x, g.ints(turned, rest), axis=-1)
        tail = [last]
    if cfg.rope_interleaved:
        pairs = g.op("Reshape", x, g.ints(0, 0, 0, turned // 2, 2))
        first, second = (g.op("Gather", pairs, g.constant(i, np.int64), axis=4) for i in (0, 1))
    else:
        first, second = g.ops("Split", 2, x, g.ints(turned // 2, turned // 2), axis=-1)
    a = g.op("Sub", g.op("Mul", first, turn.cos), g.op("Mul", second, turn.sin))
    b = g.op("Add", g.op("Mul", second, turn.cos), g.op("Mul", first, turn.sin))
    if not cfg.rope_interleaved:
        return g.op("Concat", a, b, *tail, axis=-1)
    last_axis = g.ints(4)
    both = g.op("Concat", *(g.op("Unsqueeze", y, last_axis) for y in (a, b)), axis=4)
    y = g.op("Reshape", both, g.ints(0, 0, 0, turned))
    return g.op("Concat", y, *tail, axis=-1) if tail else y
