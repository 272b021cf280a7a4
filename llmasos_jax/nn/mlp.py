"""The feed-forward part of a block."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.nn.adapters import product
from llmasos_jax.nn.fences import gated
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import weight

ACTIVATIONS = {
    "swiglu": jax.nn.silu,
    "geglu": partial(jax.nn.gelu, approximate=False),
    "geglu_tanh": partial(jax.nn.gelu, approximate=True),
    "reglu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (Shazeer, 2020, arXiv 2002.05202)."""

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        width: int | None = None,
        has_bias: bool | None = None,
        stack: int | None = None,
    ) -> None:
        d, f = cfg.embedding_dim, cfg.ffn_width if width is None else width
        has_bias = cfg.mlp_bias if has_bias is None else has_bias
        self.act_fn = resolve(cfg.mlp, ACTIVATIONS, "model.mlp")
        make = partial(weight, stack=stack)
        gated = cfg.is_gated
        self.gate = make((d, f), ("embed", "ffn"), num_in=1) if gated else None
        self.up = make((d, f), ("embed", "ffn"), num_in=1)
        self.down = make((f, d), ("ffn", "embed"), num_in=1, init="residual")
        self.gate_bias = make((f,), ("ffn",), init="zeros") if gated and has_bias else None
        self.up_bias = make((f,), ("ffn",), init="zeros") if has_bias else None
        self.down_bias = make((d,), (None,), init="zeros") if has_bias else None

    def __call__(self, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        up_btf = add_bias(product(self, "up", "btd,df->btf", x_btd, runtime), self.up_bias)
        up_btf = runtime.tag(up_btf, "up")
        if self.gate is None:
            hidden_btf = self.act_fn(up_btf)
        else:
            gate_btf = add_bias(
                product(self, "gate", "btd,df->btf", x_btd, runtime), self.gate_bias
            )
            gate_btf = runtime.tag(gate_btf, "gate")
            if runtime.platform != "gpu":
                hidden_btf = gated(self.act_fn, gate_btf, up_btf)
            else:
                hidden_btf = self.act_fn(gate_btf) * up_btf
        hidden_btf = runtime.place(hidden_btf, None, None, "ffn")
        return add_bias(product(self, "down", "btf,fd->btd", hidden_btf, runtime), self.down_bias)


def add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """`x` [B, T, ...] plus a bias of its trailing dimensions, where there is one."""
    if bias is None:
        return x
    return x + jnp.asarray(bias[...], x.dtype)[None, None]
