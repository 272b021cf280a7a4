"""Attention: projections, positions, cache; the kernel itself is in `kernels.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.nn import alibi
from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.kernels import ATTENTIONS, cached, dot_product
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.mlp import add_bias
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.rope import Rotation, rotate
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight


class Attention(nnx.Module):
    """Multi-head, grouped- or multi-query attention (Ainslie et al., 2023, arXiv 2305.13245)."""

    def __init__(self, cfg: ModelConfig, *, stack: int | None = None) -> None:
        d, n, k, h = cfg.embedding_dim, cfg.query_heads, cfg.kv_heads, cfg.head_width
        self.attend_fn = resolve(cfg.attention, ATTENTIONS, "model.attention")
        self.scale = cfg.attention_scale if cfg.attention_scale is not None else h**-0.5
        self.soft_cap = cfg.attention_soft_cap
        self.interleaved = cfg.rope_interleaved
        self.alibi_heads = n if cfg.position == "alibi" else None
        make = partial(weight, stack=stack)
        q_axes, kv_axes = ("heads", None), ("kv_heads", None)
        self.q = make((d, n, h), ("embed", *q_axes), num_in=1)
        self.k = make((d, k, h), ("embed", *kv_axes), num_in=1)
        self.v = make((d, k, h), ("embed", *kv_axes), num_in=1)
        self.o = make((n, h, d), (*q_axes, "embed"), num_in=2, init="residual")
        self.q_bias = make((n, h), q_axes, init="zeros") if cfg.qkv_bias else None
        self.k_bias = make((k, h), kv_axes, init="zeros") if cfg.qkv_bias else None
        self.v_bias = make((k, h), kv_axes, init="zeros") if cfg.qkv_bias else None
        self.o_bias = make((d,), (None,), init="zeros") if cfg.attention_out_bias else None
        full = cfg.qk_norm == "full"
        norm = partial(Norm, cfg, use_bias=False, stack=stack)
        self.q_norm = (
            norm((n, h) if full else (h,), q_axes if full else (None,)) if cfg.qk_norm else None
        )
        self.k_norm = (
            norm((k, h) if full else (h,), kv_axes if full else (None,)) if cfg.qk_norm else None
        )

    def __call__(
        self,
        x_btd: jax.Array,
        visible: Visibility,
        rotation: Rotation | None,
        cache: LayerCache | None,
        slot: jax.Array | None,
        runtime: Runtime,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Maps [B, T, D] to [B, T, D].

        With a cache, writes T tokens from `slot` on and attends to all its slots.
        """
        with jax.named_scope("qkv"):
            q_btnh = add_bias(runtime.dot("btd,dnh->btnh", x_btd, self.q[...]), self.q_bias)
            k_bskh = add_bias(runtime.dot("btd,dkh->btkh", x_btd, self.k[...]), self.k_bias)
            v_bskh = add_bias(runtime.dot("btd,dkh->btkh", x_btd, self.v[...]), self.v_bias)
        if self.q_norm is not None and self.k_norm is not None:
            q_btnh, k_bskh = self.q_norm(q_btnh), self.k_norm(k_bskh)
        if rotation is not None:
            with jax.named_scope("rope"):
                q_btnh = rotate(q_btnh, rotation, interleaved=self.interleaved)
                k_bskh = rotate(k_bskh, rotation, interleaved=self.interleaved)
        out_btnh, cache = attend(
            self.attend_fn,
            (q_btnh, k_bskh, v_bskh),
            visible,
            cache,
            slot,
            runtime,
            scale=self.scale,
            soft_cap=self.soft_cap,
            slopes=None if self.alibi_heads is None else alibi.slopes(self.alibi_heads),
        )
        return add_bias(runtime.dot("btnh,nhd->btd", out_btnh, self.o[...]), self.o_bias), cache


def attend(
    attend_fn: Callable[..., jax.Array],
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    visible: Visibility,
    cache: LayerCache | None,
    slot: jax.Array | None,
    runtime: Runtime,
    **options: Any,
) -> tuple[jax.Array, LayerCache | None]:
    """Attends among the tokens, or with a cache to all its slots after writing them there.

    Args:
      attend_fn: of the signature of `kernels.dot_product`.
      qkv: queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, Z], rotated already.
      visible: who sees whom.
      cache: keys and values so far.
      slot: int32 scalar, where the T tokens are written.
      runtime: how to run.
      **options: `scale`, `soft_cap` and `slopes` of `kernels.dot_product`.

    Returns:
      [B, T, N, Z] and the cache's next state.
    """
    q_btnh = runtime.place(qkv[0], None, None, "heads", None)
    k_bskh, v_bskz = (runtime.place(x, None, None, "kv_heads", None) for x in qkv[1:])
    if cache is not None and slot is not None:
        cache = cache.write(k_bskh, v_bskz, slot)
    with jax.named_scope("attention"):
        if cache is not None and attend_fn is dot_product:
            return cached(q_btnh, cache, visible, **options), cache
        if cache is not None:
            views = cache.views(q_btnh.shape[0])
            k_bskh, v_bskz = (x.astype(q_btnh.dtype) for x in views)
        return attend_fn(q_btnh, k_bskh, v_bskz, visible, runtime=runtime, **options), cache
