"""Multi-head latent attention: keys and values of all heads come from one small vector per token.

DeepSeek-AI, 2024, arXiv 2405.04434, section 2.1 and appendix C. Keys and values are expanded per
head before they are used or cached, so kernels and cache are those of ordinary attention: the cache
is as large as that of N heads, not as small as the paper's (its inference form multiplies the
latent vectors themselves).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.nn.adapters import product
from llmasos_jax.nn.attention import attend
from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.kernels import ATTENTIONS
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.mlp import add_bias
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.paged import PagedLayer, Places
from llmasos_jax.nn.rope import Rotation, rotate
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight


class MultiHeadLatentAttention(nnx.Module):
    """Attention with keys and values from a latent vector of `latent.kv_rank` numbers.

    R is the latent width, P the rotated width (`latent.rope_dim`), H the width of a query or key
    (its last P numbers are rotated), Z the width of a value.
    """

    def __init__(self, cfg: ModelConfig, *, stack: int | None = None) -> None:
        latent = cfg.latent
        d, n, h, z = cfg.embedding_dim, cfg.query_heads, cfg.head_width, cfg.value_width
        r, p = latent.kv_rank, latent.rope_dim
        self.attend_fn = resolve(cfg.attention, ATTENTIONS, "model.attention")
        self.scale = cfg.attention_scale if cfg.attention_scale is not None else h**-0.5
        self.soft_cap = cfg.attention_soft_cap
        self.interleaved = cfg.rope_interleaved
        self.plain_width = h - p
        make = partial(weight, stack=stack)
        # The latent vectors' norms are RMSNorms without offset whatever the model's own norm is.
        plain = cfg.replace(norm="rmsnorm", norm_eps=latent.norm_eps, norm_unit_offset=False)
        norm = partial(Norm, plain, axes=(None,), stack=stack)
        # The side of a latent vector is split as D is, where a product contracts it.
        q_rank = latent.q_rank
        self.q_down = make((d, q_rank), ("embed", None), num_in=1) if q_rank else None
        self.q_down_norm = norm(shape=(q_rank,)) if q_rank else None
        self.q = make((q_rank or d, n, h), ("embed", "heads", None), num_in=1)
        self.kv_down = make((d, r), ("embed", None), num_in=1)
        self.kv_norm = norm(shape=(r,))
        self.k_rope = make((d, p), ("embed", None), num_in=1)
        self.k = make((r, n, h - p), ("embed", "heads", None), num_in=1)
        self.v = make((r, n, z), ("embed", "heads", None), num_in=1)
        self.o = make((n, z, d), ("heads", None, "embed"), num_in=2, init="residual")
        self.o_bias = make((d,), (None,), init="zeros") if cfg.attention_out_bias else None

    def __call__(
        self,
        x_btd: jax.Array,
        visible: Visibility,
        rotation: Rotation | None,
        cache: LayerCache | PagedLayer | None,
        slot: jax.Array | Places | None,
        runtime: Runtime,
    ) -> tuple[jax.Array, Any]:
        """Maps [B, T, D] to [B, T, D].

        With a cache, writes T tokens from `slot` on and attends to all its slots.
        """
        if rotation is None:
            raise ValueError("latent attention needs rotary positions")
        with jax.named_scope("qkv"):
            latent_btr = self.kv_norm(product(self, "kv_down", "btd,dr->btr", x_btd, runtime))
            k_btp = product(self, "k_rope", "btd,dp->btp", x_btd, runtime)
            k_btnh = product(self, "k", "btr,rnh->btnh", latent_btr, runtime)
            v_btnz = product(self, "v", "btr,rnz->btnz", latent_btr, runtime)
            q_btnh = self._queries(x_btd, runtime)
        with jax.named_scope("rope"):
            turn = partial(rotate, rotation=rotation, interleaved=self.interleaved)
            plain, turned = jnp.split(q_btnh, [self.plain_width], axis=-1)
            q_btnh = jnp.concatenate([plain, turn(turned)], axis=-1)
            shared = jnp.broadcast_to(
                turn(k_btp[:, :, None, :]), (*k_btnh.shape[:-1], k_btp.shape[-1])
            )
            k_btnh = jnp.concatenate([k_btnh, shared], axis=-1)
        out_btnz, cache = attend(
            self.attend_fn,
            (q_btnh, k_btnh, v_btnz),
            visible,
            cache,
            slot,
            runtime,
            scale=self.scale,
            soft_cap=self.soft_cap,
            slopes=None,
        )
        return add_bias(product(self, "o", "btnz,nzd->btd", out_btnz, runtime), self.o_bias), cache

    def _queries(self, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
        if self.q_down is None or self.q_down_norm is None:
            return product(self, "q", "btd,dnh->btnh", x_btd, runtime)
        latent_btr = self.q_down_norm(product(self, "q_down", "btd,dr->btr", x_btd, runtime))
        return product(self, "q", "btr,rnh->btnh", latent_btr, runtime)
