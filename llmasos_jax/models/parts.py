"""A model run one part at a time, each with the weights that it is given.

`Transformer` holds all weights. Here embedding, blocks, final norm and output layer are called one
by one, so that a model of any size is looked at with one layer in memory, and a part can be tried
with another option or another weight. Everything is float32, products in full precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.definition import file_def
from llmasos_jax.models.layout import ENCODER, encoder_config
from llmasos_jax.models.transformer import Encoded, Transformer
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.types import Tree

_BLOCK = ("prefix", "0")


def shapes(cfg: ModelConfig, part: str) -> Tree:
    """What a part's weights must be: a tree of ShapeDtypeStructs, empty if there is no such part.

    Args:
      cfg: the model.
      part: "embed", "final_norm", "head", "relative", or "layers.N"; of the encoder of an
        encoder-decoder "encoder.layers.N", "encoder.final_norm" and "encoder.relative".

    Example:
      >>> cfg = ModelConfig(vocab_size=10, embedding_dim=64, num_layers=2)
      >>> shapes(cfg, "final_norm")["scale"].shape, shapes(cfg, "head")
      ((64,), {})
    """
    if part.startswith(f"{ENCODER}."):
        return shapes(encoder_config(cfg), part.removeprefix(f"{ENCODER}."))
    if part.startswith("layers."):
        one = file_def(_one_layer(cfg, int(part.removeprefix("layers.")))).shapes
        return one[_BLOCK[0]][_BLOCK[1]]
    return file_def(_one_layer(cfg, 0)).shapes.get(part, {})


def embed(
    cfg: ModelConfig, params: Tree, tokens_bt: Any, mask_bt: Any, types_bt: Any = None
) -> jax.Array:
    """The embeddings of ids int32 [B, T], float32 [B, T, D]; `mask_bt` is 1 for tokens."""
    return _embed(_one_layer(cfg, 0), params, tokens_bt, mask_bt, types_bt)


def block(
    cfg: ModelConfig,
    layer: int,
    params: Mapping[str, Tree],
    x_btd: Any,
    mask_bt: Any,
    encoded: tuple[Any, Any] | None = None,
) -> jax.Array:
    """The residual stream [B, T, D] after a block, from what stands before it.

    Args:
      cfg: the model; of an encoder's block `encoder_config` of it.
      layer: which block.
      params: the parts "layer" and, where there are relative positions, "relative".
      x_btd: before the block.
      mask_bt: 1 for tokens, on the right padding.
      encoded: for a decoder's block that attends to an encoder, its states [B, S, D] and its mask.
    """
    return _block(_one_layer(cfg, layer), dict(params), x_btd, mask_bt, encoded)


def final_norm(cfg: ModelConfig, params: Tree, x_btd: Any) -> jax.Array:
    """The residual stream [B, T, D] after the final norm; the same where there is none."""
    return _final_norm(_one_layer(cfg, 0), params, x_btd) if cfg.final_norm else x_btd


def logits(cfg: ModelConfig, params: Mapping[str, Tree], x_btd: Any) -> jax.Array:
    """The scores, float32 [B, T, V]; `params` has the part "embed" and, where it is one, "head"."""
    return _logits(_one_layer(cfg, 0), dict(params), x_btd)


def _one_layer(cfg: ModelConfig, layer: int) -> ModelConfig:
    """A model of that layer alone: layers that compute alike share one compiled program."""
    experts = cfg.experts
    if experts.count:
        dense = () if cfg.has_experts(layer) else (0,)
        experts = dataclasses.replace(experts, dense_layers=dense)
    return cfg.replace(
        num_layers=1,
        attention_windows=(cfg.layer_window(layer),),
        first_attn_norm=cfg.has_attn_norm(layer),
        experts=experts,
        encoder=Encoder(min(cfg.encoder.num_layers, 1)),
    )


def _bound(cfg: ModelConfig, **parts: Tree) -> Transformer:
    # Parts that are not used stay shapes without numbers.
    definition = file_def(cfg)
    return definition.bind({**definition.shapes, **parts})


def _positions(mask_bt: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.cumsum(mask_bt, axis=1, dtype=jnp.int32) - 1, 0)


@partial(jax.jit, static_argnums=0)
def _embed(
    cfg: ModelConfig, params: Tree, tokens_bt: Any, mask_bt: Any, types_bt: Any
) -> jax.Array:
    return _bound(cfg, embed=params).embed(tokens_bt, _positions(mask_bt), types_bt, Runtime())


@partial(jax.jit, static_argnums=0)
def _block(
    cfg: ModelConfig, params: dict[str, Tree], x_btd: Any, mask_bt: Any, encoded: Any
) -> jax.Array:
    relative = {"relative": params["relative"]} if "relative" in params else {}
    model = _bound(cfg, prefix={"0": params["layer"]}, **relative)
    with jax.default_matmul_precision("highest"):
        kept = None if encoded is None else Encoded(*encoded)
        cross = model.cross_inputs(mask_bt, mask_bt, kept, None)
        inputs = model.inputs(_positions(mask_bt), mask_bt, Runtime(), cross=cross)
        return model.prefix["0"](x_btd, inputs, None, None, Runtime())[0]


@partial(jax.jit, static_argnums=0)
def _final_norm(cfg: ModelConfig, params: Tree, x_btd: Any) -> Any:
    norm = _bound(cfg, final_norm=params).final_norm
    return x_btd if norm is None else norm(x_btd)


@partial(jax.jit, static_argnums=0)
def _logits(cfg: ModelConfig, params: dict[str, Tree], x_btd: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return _bound(cfg, **params).logits(x_btd, Runtime())
