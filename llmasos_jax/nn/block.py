"""One Transformer block, for every family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.nn.attention import Attention, CrossAttention
from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.latent import MultiHeadLatentAttention
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.mlp import MLP
from llmasos_jax.nn.moe import MoE, Routing
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.paged import PagedLayer, Places
from llmasos_jax.nn.rope import Rotation
from llmasos_jax.nn.runtime import Runtime


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer. Compiled in: such layers share no scan step."""

    window: int | None = None
    has_experts: bool = False
    has_attn_norm: bool = True  # where the placement of norms has one before attention


@dataclass(frozen=True)
class CrossInputs:
    """What a decoder's cross-attention reads.

    Attributes:
      x_bsd: the encoder's states [B, S, D]; None where each layer has their keys and values kept.
      visible: which of them a token sees.
    """

    x_bsd: jax.Array | None
    visible: Visibility


@dataclass(frozen=True)
class BlockInputs:
    """What every block of one forward pass reads besides the residual stream.

    Attributes:
      visible: for each window that the model has (None included), who sees whom.
      rotations: rotary angles by name ("global", "local"); empty without rotary positions.
      slot: int32 scalar, where a cache is written, or places in pages; None without a cache.
      counted_bt: bool [B, T], which tokens sums over a batch are over: not padding.
      bias_nts: float32 [N, T, S], the bias of relative positions; None in models without them.
      cross: in the decoder of an encoder-decoder.
    """

    visible: dict[int | None, Visibility]
    rotations: dict[str, Rotation]
    slot: jax.Array | Places | None
    counted_bt: jax.Array
    bias_nts: jax.Array | None = None
    cross: CrossInputs | None = None


class Block(nnx.Module):
    """Attention and MLP around a residual stream, with norms where `norm_placement` says.

    In the decoder of an encoder-decoder, attention to the encoder's states is between them.
    """

    def __init__(self, cfg: ModelConfig, spec: LayerSpec, *, stack: int | None = None) -> None:
        self.window = spec.window
        is_local = spec.window is not None and cfg.rope_theta_local is not None
        self.rotation = "local" if is_local else "global"
        self.placement = cfg.norm_placement
        self.parallel = cfg.block != "sequential"
        norm = partial(Norm, cfg, (cfg.embedding_dim,), (None,), stack=stack)
        before, after = self.placement in ("pre", "sandwich"), self.placement != "pre"
        self.attn_norm = norm() if before and spec.has_attn_norm else None
        attention = MultiHeadLatentAttention if cfg.latent.kv_rank else Attention
        self.attn = attention(cfg, stack=stack)
        self.attn_post_norm = norm() if after else None
        crosses = cfg.encoder.num_layers > 0
        self.cross_attn_norm = norm() if crosses and before else None
        self.cross_attn = CrossAttention(cfg, stack=stack) if crosses else None
        self.cross_attn_post_norm = norm() if crosses and after else None
        self.mlp_norm = norm() if before and cfg.block != "parallel" else None
        self.mlp = None if spec.has_experts else MLP(cfg, stack=stack)
        self.moe: Any = MoE(cfg, stack=stack) if spec.has_experts else None
        self.mlp_post_norm = norm() if after else None

    def __call__(
        self,
        x_btd: jax.Array,
        inputs: BlockInputs,
        cache: LayerCache | PagedLayer | None,
        dropout: Dropout | None,
        runtime: Runtime,
        cross_cache: LayerCache | None = None,
    ) -> tuple[jax.Array, Any, Routing | None]:
        """Maps the residual stream [B, T, D] to the next one, and the cache to its next state.

        `cross_cache` has keys and values of the encoder's states, where they are kept. The third
        result is what a router did, where the layer has one.
        """
        attend = partial(
            self.attn,
            visible=inputs.visible[self.window],
            rotation=inputs.rotations.get(self.rotation),
            cache=cache,
            slot=inputs.slot,
            runtime=runtime,
            **({} if inputs.bias_nts is None else {"bias_nts": inputs.bias_nts}),
        )
        attn_in = _normed(self.attn_norm, x_btd, runtime)
        attn_out, cache = attend(attn_in)
        attn_out = runtime.tag(attn_out, "attention_out")
        if self.parallel:
            mlp_in = attn_in if self.mlp_norm is None else _normed(self.mlp_norm, x_btd, runtime)
            mlp_out, routing = self._mlp(mlp_in, inputs, runtime)
            both = attn_out + mlp_out
            return self._add(x_btd, both, None, _drop_at(dropout, 0)), cache, routing
        x_btd = self._add(x_btd, attn_out, self.attn_post_norm, _drop_at(dropout, 0))
        if self.cross_attn is not None and inputs.cross is not None:
            source = inputs.cross.x_bsd if cross_cache is None else cross_cache
            if source is None:
                raise ValueError("the cache has no keys of the encoder's states for this layer")
            with jax.named_scope("cross_attention"):
                cross_in = _apply(self.cross_attn_norm, x_btd)
                cross_out = self.cross_attn(cross_in, source, inputs.cross.visible, runtime)
            norm = self.cross_attn_post_norm
            x_btd = self._add(x_btd, cross_out, norm, _drop_at(dropout, 2))
        mlp_out, routing = self._mlp(_normed(self.mlp_norm, x_btd, runtime), inputs, runtime)
        x_btd = self._add(x_btd, mlp_out, self.mlp_post_norm, _drop_at(dropout, 1))
        return x_btd, cache, routing

    def _mlp(
        self, x_btd: jax.Array, inputs: BlockInputs, runtime: Runtime
    ) -> tuple[jax.Array, Routing | None]:
        if self.mlp is None:
            with jax.named_scope("moe"):
                y_btd, routing = self.moe(x_btd, inputs.counted_bt, runtime)
                return runtime.tag(y_btd, "mlp_out"), routing
        with jax.named_scope("mlp"):
            return runtime.tag(self.mlp(x_btd, runtime), "mlp_out"), None

    def _add(
        self, x_btd: jax.Array, y_btd: jax.Array, norm: Norm | None, dropout: Dropout | None
    ) -> jax.Array:
        y_btd = y_btd if dropout is None else dropout(y_btd)
        if self.placement == "post":
            return _apply(norm, x_btd + y_btd)
        return x_btd + _apply(norm, y_btd)


def _normed(norm: Norm | None, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
    """What goes into the products of a sub-layer."""
    return runtime.fence(_apply(norm, x_btd))


def _apply(norm: Norm | None, x_btd: jax.Array) -> jax.Array:
    return x_btd if norm is None else norm(x_btd)


def _drop_at(dropout: Dropout | None, index: int) -> Dropout | None:
    return None if dropout is None else dropout.at(index)
