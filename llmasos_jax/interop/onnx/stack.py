"""Blocks as ONNX nodes, and what stands before and after them."""

from __future__ import annotations

from collections.abc import Sequence

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.interop.onnx.attention import (
    Context,
    Past,
    attend,
    out_product,
    projections,
    self_attention,
)
from llmasos_jax.interop.onnx.experts import mixture
from llmasos_jax.interop.onnx.graph import Graph
from llmasos_jax.interop.onnx.parts import activation, mlp, norm, product, soft_cap


def embed(g: Graph, cfg: ModelConfig, tokens: str, positions: str | None, types: str | None) -> str:
    """The residual stream before the first block, float32 [B, T, D]."""
    d, g.stem = cfg.embedding_dim, "embed"

    def rows(name: str, num: int, ids: str) -> str:
        return g.widened(g.op("Gather", g.weight(name, num, d, wide=False), ids), name)

    x = rows("embed.table", cfg.vocab_size, tokens)
    if cfg.embedding_scale != 1.0:
        x = g.op("Mul", x, g.constant(cfg.embedding_scale))
    if cfg.position == "learned":
        x = g.op("Add", x, rows("embed.positions", cfg.context_length, positions or ""))
    if cfg.token_types:
        x = g.op("Add", x, rows("embed.types", cfg.token_types, types or ""))
    return norm(g, cfg, x, "embed.norm", d) if cfg.embedding_norm else x


def run(
    g: Graph,
    cfg: ModelConfig,
    x: str,
    context: Context,
    pasts: Sequence[Past] | None,
    *,
    prefix: str = "",
    cross: tuple[str, Context] | None = None,
) -> tuple[str, list[Past]]:
    """All blocks and the final norm, [B, T, D]; and each layer's keys and values.

    Args:
      g: the graph.
      cfg: the model; of the encoder of an encoder-decoder `encoder_config` of it.
      x: [B, T, D].
      context: what all layers read.
      pasts: keys and values so far of each layer; None has none.
      prefix: of the names of weights.
      cross: the encoder's states [B, S, D], and which of them are seen.
    """
    found = []
    for layer in range(cfg.num_layers):
        name = f"{prefix}layers.{layer}"
        g.stem = name
        past = None if pasts is None else pasts[layer]
        x, now = _block(g, cfg, x, name, layer, context, past, cross)
        found.append(now)
    g.stem = f"{prefix}final_norm"
    if cfg.final_norm:
        x = norm(g, cfg, x, f"{prefix}final_norm", cfg.embedding_dim)
    return x, found


def _block(
    g: Graph,
    cfg: ModelConfig,
    x: str,
    name: str,
    layer: int,
    context: Context,
    past: Past | None,
    cross: tuple[str, Context] | None,
) -> tuple[str, Past]:
    placement = cfg.norm_placement
    before = placement in ("pre", "sandwich")

    def normed(x: str, part: str, is_there: bool = True) -> str:
        has_norm = before and is_there
        return norm(g, cfg, x, f"{name}.{part}", cfg.embedding_dim) if has_norm else x

    def add(x: str, y: str, part: str) -> str:
        if placement == "pre":
            return g.op("Add", x, y)
        own = f"{name}.{part}"
        if placement == "post":
            return norm(g, cfg, g.op("Add", x, y), own, cfg.embedding_dim)
        return g.op("Add", x, norm(g, cfg, y, own, cfg.embedding_dim))

    attn_in = normed(x, "attn_norm", cfg.has_attn_norm(layer))
    attn, now = self_attention(g, cfg, attn_in, f"{name}.attn", layer, context, past)
    if cfg.block != "sequential":
        mlp_in = attn_in if cfg.block == "parallel" else normed(x, "mlp_norm")
        both = g.op("Add", attn, _feed_forward(g, cfg, mlp_in, name, layer))
        return g.op("Add", x, both), now
    x = add(x, attn, "attn_post_norm")
    if cross is not None:
        cross_in = normed(x, "cross_attn_norm")
        x = add(
            x,
            _cross_attention(g, cfg, cross_in, f"{name}.cross_attn", *cross),
            "cross_attn_post_norm",
        )
    y = _feed_forward(g, cfg, normed(x, "mlp_norm"), name, layer)
    return add(x, y, "mlp_post_norm"), now


def _cross_attention(
    g: Graph, cfg: ModelConfig, x: str, name: str, source: str, context: Context
) -> str:
    heads = projections(g, cfg, x, source, name, None)
    return out_product(g, cfg, attend(g, cfg, heads, context.sizes, context.keys), name)


def _feed_forward(g: Graph, cfg: ModelConfig, x: str, name: str, layer: int) -> str:
    if cfg.has_experts(layer):
        return mixture(g, cfg, x, f"{name}.moe")
    return mlp(g, cfg, x, f"{name}.mlp", cfg.ffn_width, cfg.mlp_bias)


def logits(g: Graph, cfg: ModelConfig, x: str) -> str:
    """Scores of tokens, float32 [B, T, V]."""
    d, v, g.stem = cfg.embedding_dim, cfg.vocab_size, "head"
    bias = "head.bias" if cfg.head == "mlm" or cfg.head_bias else None
    if cfg.head == "mlm":
        inner = "head.transform.bias" if cfg.mlp_bias else None
        x = activation(g, cfg.mlp, product(g, x, "head.transform.w", d, d, inner))
        x = norm(g, cfg, x, "head.norm", d)
    if not cfg.tie_embeddings:
        y = product(g, x, "head.w", d, v, bias)
    else:
        y = _by_table(g, x, d, v)
        y = y if bias is None else g.op("Add", y, g.weight(bias, v))
    if cfg.logit_scale != 1.0:
        y = g.op("Mul", y, g.constant(cfg.logit_scale))
    return soft_cap(g, y, cfg.logit_soft_cap)


def _by_table(g: Graph, x: str, d: int, v: int) -> str:
    """The tied output layer: a product with the table turned, which is not copied for it."""
    rows = g.op("Reshape", x, g.ints(-1, d))
    y = g.op("Gemm", rows, g.weight("embed.table", v, d), transB=1)
    lead = g.op("Shape", x, start=0, end=2)
    return g.op("Reshape", y, g.op("Concat", lead, g.ints(v), axis=0))


def pooled(g: Graph, cfg: ModelConfig, x: str, mask: str) -> str:
    """What stands for a whole text, [B, D]: the pooler's state, or what `pooling` gives."""
    d, g.stem = cfg.embedding_dim, "pooler"
    if cfg.pooler:
        first = _first(g, x, mask)
        return g.op("Tanh", product(g, first, "pooler.w", d, d, "pooler.bias"))
    if cfg.pooling == "cls":
        return _first(g, x, mask)
    is_token = g.op("Cast", g.op("Unsqueeze", mask, g.ints(2)), to=g.onnx.TensorProto.BOOL)
    # Not a product with 0: what padding holds may be infinite.
    kept = g.op("Where", is_token, x, g.constant(0.0))
    one = g.op("Cast", is_token, to=g.onnx.TensorProto.FLOAT)
    count = g.op("ReduceSum", one, g.ints(1), keepdims=0)
    total = g.op("ReduceSum", kept, g.ints(1), keepdims=0)
    return g.op("Div", total, g.op("Max", count, g.constant(1.0)))


def _first(g: Graph, x: str, mask: str) -> str:
    """The state of each row's first token, [B, D]."""
    place = g.op("ArgMax", mask, axis=1, keepdims=1)
    return g.op("GatherND", x, place, batch_dims=1)


def unit(g: Graph, x: str) -> str:
    """Rows of length 1."""
    length = g.op("ReduceL2", x, g.ints(-1), keepdims=1)
    return g.op("Div", x, g.op("Max", length, g.constant(1e-12)))


def scores(g: Graph, cfg: ModelConfig, x: str, name: str, num: int) -> str:
    """A product and a bias, from D numbers to `num` scores."""
    g.stem = name
    return product(g, x, f"{name}.w", cfg.embedding_dim, num, f"{name}.bias")
