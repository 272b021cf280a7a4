"""From token ids to the residual stream, and back to scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.nn.mlp import add_bias
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight


class Embed(nnx.Module):
    """The embedding table, positions and token types where they are learned, the norm after."""

    def __init__(self, cfg: ModelConfig) -> None:
        d = cfg.embedding_dim
        self.scale = cfg.embedding_scale
        self.table = weight((cfg.vocab_size, d), ("vocab", "embed"))
        learned = cfg.position == "learned"
        self.positions = weight((cfg.context_length, d), (None, "embed")) if learned else None
        self.types = weight((cfg.token_types, d), (None, "embed")) if cfg.token_types else None
        self.norm = Norm(cfg, (d,), (None,)) if cfg.embedding_norm else None

    def __call__(
        self,
        tokens_bt: jax.Array,
        positions_bt: jax.Array,
        token_types_bt: jax.Array | None,
        runtime: Runtime,
    ) -> jax.Array:
        """Embeds ids int32 [B, T] as `act_dtype` [B, T, D]; without types all are of type 0."""
        x_btd = self.table[...][tokens_bt].astype(runtime.act_dtype)
        if self.scale != 1.0:
            x_btd = x_btd * jnp.asarray(self.scale, x_btd.dtype)
        if self.positions is not None:
            x_btd = x_btd + self.positions[...][positions_bt].astype(x_btd.dtype)
        if self.types is not None:
            types_bt = jnp.zeros_like(tokens_bt) if token_types_bt is None else token_types_bt
            x_btd = x_btd + self.types[...][types_bt].astype(x_btd.dtype)
        return x_btd if self.norm is None else self.norm(x_btd)


def attend_table(x_btd: jax.Array, table_vd: jax.Array, runtime: Runtime) -> jax.Array:
    """The tied output layer: float32 [B, T, V]."""
    return runtime.dot("btd,vd->btv", x_btd, table_vd, out_dtype=jnp.float32)


class Head(nnx.Module):
    """An output layer of its own."""

    def __init__(self, cfg: ModelConfig) -> None:
        d, v = cfg.embedding_dim, cfg.vocab_size
        self.w = weight((d, v), ("embed", "vocab"), num_in=1)
        self.bias = weight((v,), ("vocab",), init="zeros") if cfg.head_bias else None

    def __call__(self, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
        """Scores, float32 [B, T, V]."""
        scores = runtime.dot("btd,dv->btv", x_btd, self.w[...], out_dtype=jnp.float32)
        return add_bias(scores, self.bias)
