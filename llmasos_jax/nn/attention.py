"""Attention: projections, positions, cache; the kernel itself is in `kernels.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.nn import alibi
from llmasos_jax.nn.adapters import product
from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.context import attend_split
from llmasos_jax.nn.kernels import ATTENTIONS, cached, dot_product
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.mlp import add_bias
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.paged import PagedLayer, Places
from llmasos_jax.nn.ragged import RaggedLayer
from llmasos_jax.nn.rope import Rotation, rotate, rotate_by_product
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight
from llmasos_jax.parallel.mesh import ways


class Projections(nnx.Module):
    """The products around attention: grouped- or multi-query (Ainslie et al., 2023, 2305.13245)."""

    def __init__(self, cfg: ModelConfig, *, stack: int | None = None) -> None:
        d, n, k, h = cfg.embedding_dim, cfg.query_heads, cfg.kv_heads, cfg.head_width
        self.attend_fn = resolve(cfg.attention, ATTENTIONS, "model.attention")
        self.scale = cfg.attention_scale if cfg.attention_scale is not None else h**-0.5
        self.soft_cap = cfg.attention_soft_cap
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

    def queries(self, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
        """[B, T, N, H] of [B, T, D]."""
        q_btnh = add_bias(product(self, "q", "btd,dnh->btnh", x_btd, runtime), self.q_bias)
        return q_btnh if self.q_norm is None else self.q_norm(q_btnh)

    def keys_values(self, x_bsd: jax.Array, runtime: Runtime) -> tuple[jax.Array, jax.Array]:
        """Keys and values, each [B, S, K, H], of [B, S, D]."""
        k_bskh = add_bias(product(self, "k", "btd,dkh->btkh", x_bsd, runtime), self.k_bias)
        v_bskh = add_bias(product(self, "v", "btd,dkh->btkh", x_bsd, runtime), self.v_bias)
        return k_bskh if self.k_norm is None else self.k_norm(k_bskh), v_bskh

    def out(self, out_btnh: jax.Array, runtime: Runtime) -> jax.Array:
        """[B, T, D] of what the heads gathered, [B, T, N, H]."""
        return add_bias(product(self, "o", "btnh,nhd->btd", out_btnh, runtime), self.o_bias)


class Attention(Projections):
    """Attention among the tokens of one stack."""

    def __init__(self, cfg: ModelConfig, *, stack: int | None = None) -> None:
        super().__init__(cfg, stack=stack)
        self.interleaved = cfg.rope_interleaved
        self.alibi_heads = cfg.query_heads if cfg.position == "alibi" else None

    def __call__(
        self,
        x_btd: jax.Array,
        visible: Visibility,
        rotation: Rotation | None,
        cache: LayerCache | PagedLayer | RaggedLayer | None,
        slot: jax.Array | Places | None,
        runtime: Runtime,
        bias_nts: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Maps [B, T, D] to [B, T, D].

        With a cache, writes T tokens from `slot` on and attends to all its slots. `bias_nts` is
        added to the scores.
        """
        with jax.named_scope("qkv"):
            q_btnh = self.queries(x_btd, runtime)
            k_bskh, v_bskh = self.keys_values(x_btd, runtime)
        if rotation is not None:
            with jax.named_scope("rope"):
                turn = partial(rotate, interleaved=self.interleaved)
                is_bfloat16 = q_btnh.dtype == k_bskh.dtype == jnp.bfloat16
                if runtime.platform == "tpu" and is_bfloat16 and not self.interleaved:
                    turn = rotate_by_product
                q_btnh, k_bskh = turn(q_btnh, rotation), turn(k_bskh, rotation)
        # A custom attention meets `bias` only in models that have one.
        more = {} if bias_nts is None else {"bias": bias_nts}
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
            **more,
        )
        return self.out(out_btnh, runtime), cache


class CrossAttention(Projections):
    """Attention of a decoder's tokens to the encoder's states; it has no positions."""

    def __call__(
        self,
        x_btd: jax.Array,
        source: jax.Array | LayerCache,
        visible: Visibility,
        runtime: Runtime,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D].

        `source` is the encoder's states [B, S, D], or their keys and values, kept.
        """
        options = {"scale": self.scale, "soft_cap": self.soft_cap, "slopes": None}
        with jax.named_scope("qkv"):
            q_btnh = self.queries(x_btd, runtime)
        if isinstance(source, LayerCache):
            q_btnh = runtime.place(q_btnh, None, None, "heads", None)
            with jax.named_scope("attention"):
                out_btnh = attend_cache(self.attend_fn, q_btnh, source, visible, runtime, **options)
        else:
            with jax.named_scope("qkv"):
                pair = self.keys_values(source, runtime)
            out_btnh, _ = attend(
                self.attend_fn, (q_btnh, *pair), visible, None, None, runtime, **options
            )
        return self.out(out_btnh, runtime)


def attend(
    attend_fn: Callable[..., jax.Array],
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    visible: Visibility,
    cache: LayerCache | PagedLayer | RaggedLayer | None,
    slot: jax.Array | Places | None,
    runtime: Runtime,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Attends among the tokens, or with a cache to all its slots after writing them there.

    Args:
      attend_fn: of the signature of `kernels.dot_product`.
      qkv: queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, Z], rotated already.
      visible: who sees whom.
      cache: keys and values so far, in slots or in pages.
      slot: int32 scalar, where the T tokens are written; of pages their places.
      runtime: how to run.
      **options: `scale`, `soft_cap`, `slopes` and `bias` of `kernels.dot_product`.

    Returns:
      [B, T, N, Z] and the cache's next state.
    """
    q_btnh = runtime.place(qkv[0], None, None, "heads", None)
    k_bskh, v_bskz = (runtime.place(x, None, None, "kv_heads", None) for x in qkv[1:])
    if isinstance(cache, PagedLayer | RaggedLayer):
        return _attend_paged(
            attend_fn, (q_btnh, k_bskh, v_bskz), visible, cache, slot, runtime, options
        )
    if cache is not None and isinstance(slot, jax.Array):
        cache = cache.write(k_bskh, v_bskz, slot)
    with jax.named_scope("attention"):
        if cache is not None:
            return attend_cache(attend_fn, q_btnh, cache, visible, runtime, **options), cache
        tagged = zip((q_btnh, k_bskh, v_bskz), "qkv", strict=True)
        q_btnh, k_bskh, v_bskz = (runtime.tag(x, name) for x, name in tagged)
        qkv = (q_btnh, _for_each_device(k_bskh, runtime), _for_each_device(v_bskz, runtime))
        out_btnz = attend_split(attend_fn, qkv, visible, runtime, **options)
        if attend_fn is not dot_product:  # that one tags what it gives, as each kernel wants it
            out_btnz = runtime.tag(out_btnz, "attention")
        return out_btnz, cache


def _attend_paged(
    attend_fn: Callable[..., jax.Array],
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    visible: Visibility,
    layer: PagedLayer | RaggedLayer,
    places: Any,
    runtime: Runtime,
    options: dict[str, Any],
) -> tuple[jax.Array, PagedLayer | RaggedLayer]:
    if attend_fn is not dot_product or options.get("bias") is not None:
        raise ValueError("pages know plain attention only: no function of one's own, and no bias")
    layer = layer.write(*qkv[1:], places)
    known = {name: options[name] for name in ("scale", "soft_cap", "slopes")}
    with jax.named_scope("attention"):
        out_btnz = layer.attend(qkv[0], places, window=visible.window, runtime=runtime, **known)
    return out_btnz, layer


def _for_each_device(x_bskh: jax.Array, runtime: Runtime) -> jax.Array:
    """Key heads that `tensor` does not split, repeated until each of its devices has one."""
    mesh = runtime.mesh if runtime.manual is None else runtime.manual.mesh
    tensor, heads = 1 if mesh is None else ways(mesh, "tensor"), x_bskh.shape[2]
    if heads % tensor == 0:
        return x_bskh
    times = tensor // heads
    return runtime.place(jnp.repeat(x_bskh, times, axis=2), None, None, "heads", None)


def attend_cache(
    attend_fn: Callable[..., jax.Array],
    q_btnh: jax.Array,
    cache: LayerCache,
    visible: Visibility,
    runtime: Runtime,
    **options: Any,
) -> jax.Array:
    """Attends to all slots of a cache as it stands; arguments and result as in `attend`."""
    if attend_fn is dot_product:
        return cached(q_btnh, cache, visible, **options)
    k_bskh, v_bskz = (x.astype(q_btnh.dtype) for x in cache.views(q_btnh.shape[0]))
    return attend_fn(q_btnh, k_bskh, v_bskz, visible, runtime=runtime, **options)
