"""Attention as ONNX nodes: masks, relative positions, caches, latent attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.interop.onnx.graph import Graph
from llmasos_jax.interop.onnx.parts import Turn, norm, product, rms_norm, rotate
from llmasos_jax.interop.onnx.parts import soft_cap as capped
from llmasos_jax.nn.alibi import slopes
from llmasos_jax.nn.relative import buckets
from llmasos_jax.nn.scores import MASKED


@dataclass
class Sizes:
    """Names of the lengths of a run, int64 [1]: new tokens T, and keys S."""

    tokens: str
    keys: str


@dataclass
class Context:
    """What all layers of a stack read.

    Attributes:
      sizes: of queries and keys.
      back: int64 [T, S], how far a key lies behind its query.
      keys: bool [B, 1, 1, S], which keys are tokens; None where all are.
      turns: rotary angles by name.
      bias: float32 [1, N, T, S] of relative positions, or None.
      visible: masks by window, bool [B or 1, 1, T, S].
      far: float32 [1, N, T, S], ALiBi's penalty, or None.
    """

    sizes: Sizes
    back: str
    keys: str | None
    turns: dict[str, Turn]
    bias: str | None = None
    far: str | None = None
    visible: dict[int | None, str | None] = field(default_factory=dict)


def distances(g: Graph, sizes: Sizes) -> str:
    """How far each key lies behind each query, int64 [T, S]; the last T keys are the queries."""
    keys, tokens = (g.op("Squeeze", x, g.ints(0)) for x in (sizes.keys, sizes.tokens))
    zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
    q_index = g.op("Range", g.op("Sub", keys, tokens), keys, one)
    k_index = g.op("Range", zero, keys, one)
    return g.op("Sub", g.op("Unsqueeze", q_index, g.ints(1)), g.op("Unsqueeze", k_index, g.ints(0)))


def key_mask(g: Graph, mask: str) -> str:
    """Bool [B, 1, 1, S] of an attention mask int64 [B, S]."""
    return g.op("Unsqueeze", g.op("Cast", mask, to=g.onnx.TensorProto.BOOL), g.ints(1, 2))


def visibility(g: Graph, cfg: ModelConfig, context: Context, window: int | None) -> str | None:
    """Who sees whom in layers with this window, bool [B or 1, 1, T, S]; None: all see all."""
    if window not in context.visible:
        seen, int64 = [], np.int64
        if cfg.causal:
            seen.append(g.op("GreaterOrEqual", context.back, g.constant(0, int64)))
        if window is not None:
            seen.append(g.op("Less", context.back, g.constant(window, int64)))
            if not cfg.causal:
                seen.append(g.op("Greater", context.back, g.constant(-window, int64)))
        if context.keys is not None:
            seen.append(context.keys)
        found = seen[0] if seen else None
        for more in seen[1:]:
            found = g.op("And", found or "", more)
        context.visible[window] = found
    return context.visible[window]


def relative_bias(g: Graph, cfg: ModelConfig, back: str, name: str) -> str:
    """T5's biases, float32 [1, N, T, S]: `back` looks its bucket up, and the bucket its numbers."""
    most = cfg.relative_max_distance
    places = np.arange(-most, most + 1, dtype=np.int32)
    bucket = buckets(places, cfg.relative_buckets, most, both_ways=not cfg.causal)  # pyright: ignore[reportArgumentType]
    ends = (g.constant(-most, np.int64), g.constant(most, np.int64))
    place = g.op("Add", g.op("Clip", back, *ends), ends[1])
    bucket_ts = g.op("Gather", g.constant(np.asarray(bucket), np.int64), place)
    table = g.weight(f"{name}.buckets", cfg.relative_buckets, cfg.query_heads)
    bias_tsn = g.op("Gather", table, bucket_ts)
    return g.op("Unsqueeze", g.op("Transpose", bias_tsn, perm=[2, 0, 1]), g.ints(0))


def alibi_penalty(g: Graph, cfg: ModelConfig, back: str) -> str:
    """The slope of each head times the distance, float32 [1, N, T, S]."""
    far = g.op("Cast", g.op("Abs", back), to=g.onnx.TensorProto.FLOAT)
    return g.op("Mul", g.constant(slopes(cfg.query_heads)[None, :, None, None]), far)


@dataclass(frozen=True)
class Heads:
    """Names of queries [B, N, T, H], keys [B, K, S, H] and values [B, K, S, Z]."""

    q: str
    k: str
    v: str


Past = tuple[str, str]


def projections(
    g: Graph, cfg: ModelConfig, x: str, source: str, name: str, turn: Turn | None
) -> Heads:
    """Queries of `x`, keys and values of `source`; [B, T, D] each, turned where `turn` is given."""
    h = cfg.head_width
    found = []
    for part, num, read in (
        ("q", cfg.query_heads, x),
        ("k", cfg.kv_heads, source),
        ("v", cfg.kv_heads, source),
    ):
        bias = f"{name}.{part}_bias" if cfg.qkv_bias else None
        y = product(g, read, f"{name}.{part}", cfg.embedding_dim, num * h, bias)
        is_normed = part != "v" and cfg.qk_norm is not None
        if is_normed and cfg.qk_norm == "full":
            y = norm(g, cfg, y, f"{name}.{part}_norm", num * h, bias=False)
        y = g.op("Reshape", y, g.ints(0, 0, num, h))
        if is_normed and cfg.qk_norm == "head":
            y = norm(g, cfg, y, f"{name}.{part}_norm", h, bias=False)
        if turn is not None and part != "v":
            y = rotate(g, cfg, y, turn, h)
        found.append(g.op("Transpose", y, perm=[0, 2, 1, 3]))
    return Heads(*found)


def latent_projections(g: Graph, cfg: ModelConfig, x: str, name: str, turn: Turn) -> Heads:
    """Queries, keys and values by way of small latent vectors (DeepSeek)."""
    latent, d, n = cfg.latent, cfg.embedding_dim, cfg.query_heads
    h, z, r, p = cfg.head_width, cfg.value_width, latent.kv_rank, latent.rope_dim

    def normed(y: str, part: str, width: int) -> str:
        return rms_norm(g, y, g.weight(f"{name}.{part}.scale", width), latent.norm_eps)

    def by_head(y: str, width: int) -> str:
        return g.op("Reshape", y, g.ints(0, 0, n, width))

    kv = normed(product(g, x, f"{name}.kv_down", d, r, None), "kv_norm", r)
    shared = product(g, x, f"{name}.k_rope", d, p, None)
    k = by_head(product(g, kv, f"{name}.k", r, n * (h - p), None), h - p)
    v = by_head(product(g, kv, f"{name}.v", r, n * z, None), z)
    width = d
    if latent.q_rank:
        x = product(g, x, f"{name}.q_down", d, latent.q_rank, None)
        x, width = normed(x, "q_down_norm", latent.q_rank), latent.q_rank
    q = by_head(product(g, x, f"{name}.q", width, n * h, None), h)
    plain, turned = g.ops("Split", 2, q, g.ints(h - p, p), axis=-1)
    q = g.op("Concat", plain, rotate(g, cfg, turned, turn, p), axis=-1)
    shared = rotate(g, cfg, g.op("Unsqueeze", shared, g.ints(2)), turn, p)
    k = g.op("Concat", k, g.op("Tile", shared, g.ints(1, 1, n, 1)), axis=-1)
    q, k, v = (g.op("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, k, v))
    return Heads(q, k, v)


def attend(
    g: Graph,
    cfg: ModelConfig,
    heads: Heads,
    sizes: Sizes,
    visible: str | None,
    *,
    bias: str | None = None,
    far: str | None = None,
) -> str:
    """softmax(q k^T * scale + bias) v over what is visible, [B, T, N Z].

    Query heads that share a key head are rows of one product: [B, K, G T, H] times [B, K, H, S].
    """
    n, k, h = cfg.query_heads, cfg.kv_heads, cfg.head_width
    groups, zero = n // k, g.ints(0)
    q, scale = heads.q, cfg.attention_scale if cfg.attention_scale is not None else h**-0.5
    if groups > 1:
        q = g.op("Reshape", q, g.ints(0, k, -1, h))
    scores = g.op("MatMul", q, g.op("Transpose", heads.k, perm=[0, 1, 3, 2]))
    if groups > 1:
        split = g.op("Concat", zero, g.ints(n), sizes.tokens, g.ints(-1), axis=0)
        scores = g.op("Reshape", scores, split)
    scores = capped(g, g.op("Mul", scores, g.constant(scale)), cfg.attention_soft_cap)
    if far is not None:
        scores = g.op("Sub", scores, far)
    if bias is not None:
        scores = g.op("Add", scores, bias)
    if visible is not None:
        scores = g.op("Where", visible, scores, g.constant(MASKED))
    shares = g.op("Softmax", scores, axis=-1)
    if groups > 1:
        joined = g.op("Concat", zero, g.ints(k, -1), sizes.keys, axis=0)
        shares = g.op("Reshape", shares, joined)
    out = g.op("MatMul", shares, heads.v)
    if groups > 1:
        split = g.op("Concat", zero, g.ints(n), sizes.tokens, g.ints(-1), axis=0)
        out = g.op("Reshape", out, split)
    out = g.op("Transpose", out, perm=[0, 2, 1, 3])
    return g.op("Reshape", out, g.ints(0, 0, n * cfg.value_width))


def out_product(g: Graph, cfg: ModelConfig, x: str, name: str) -> str:
    """[B, T, D] of what the heads gathered, [B, T, N Z]."""
    bias = f"{name}.o_bias" if cfg.attention_out_bias else None
    width = cfg.query_heads * cfg.value_width
    return product(g, x, f"{name}.o", width, cfg.embedding_dim, bias)


def self_attention(
    g: Graph, cfg: ModelConfig, x: str, name: str, layer: int, context: Context, past: Past | None
) -> tuple[str, Past]:
    """Attention among the tokens and those before them, [B, T, D]; and keys and values of all."""
    window = cfg.layer_window(layer)
    is_local = window is not None and cfg.rope_theta_local is not None
    turn = context.turns.get("local" if is_local else "global")
    if cfg.latent.kv_rank:
        if turn is None:
            raise ValueError("latent attention needs rotary positions")
        heads = latent_projections(g, cfg, x, name, turn)
    else:
        heads = projections(g, cfg, x, x, name, turn)
    if past is not None:
        k, v = (
            g.op("Concat", *pair, axis=2) for pair in zip(past, (heads.k, heads.v), strict=True)
        )
        heads = Heads(heads.q, k, v)
    visible = visibility(g, cfg, context, window)
    out = attend(g, cfg, heads, context.sizes, visible, bias=context.bias, far=context.far)
    return out_product(g, cfg, out, name), (heads.k, heads.v)
