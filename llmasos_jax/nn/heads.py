"""What stands on an encoder: scores of masked tokens, of the next sentence, of labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.named import resolve
from llmasos_jax.nn.embed import attend_table
from llmasos_jax.nn.mlp import ACTIVATIONS, add_bias
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import gathered, weight


class Affine(nnx.Module):
    """A product and a bias, from D numbers to `num_out`."""

    def __init__(self, cfg: ModelConfig, num_out: int, *, has_bias: bool = True) -> None:
        self.w = weight((cfg.embedding_dim, num_out), ("embed", None), num_in=1)
        self.bias = weight((num_out,), (None,), init="zeros") if has_bias else None

    def __call__(self, x: jax.Array, runtime: Runtime) -> jax.Array:
        """Maps [B, D] or [B, T, D] to as many rows of `num_out`, in `act_dtype`."""
        return _affine(x, self.w[...], self.bias, runtime, None)


class Scores(nnx.Module):
    """An affine map to scores in float32, which gathers its own weights."""

    def __init__(self, cfg: ModelConfig, num_out: int) -> None:
        self.w = weight((cfg.embedding_dim, num_out), ("embed", None), num_in=1)
        self.bias = weight((num_out,), (None,), init="zeros")

    def __call__(self, x: jax.Array, runtime: Runtime) -> jax.Array:
        """Maps [B, D] or [B, T, D] to as many rows of float32 scores."""
        own = gathered(self, runtime)
        return _affine(x, own.w[...], own.bias, runtime, jnp.float32)


def _affine(
    x: jax.Array, w: jax.Array, bias: nnx.Param | None, runtime: Runtime, out_dtype: object
) -> jax.Array:
    spec = "bd,do->bo" if x.ndim == 2 else "btd,do->bto"
    y = runtime.dot(spec, x, w, out_dtype=out_dtype)
    if bias is None:
        return y
    bias_o = bias[...].astype(y.dtype)
    return y + bias_o.reshape((1,) * (y.ndim - 1) + bias_o.shape)


class MLMHead(nnx.Module):
    """Scores of the token at a place, from its hidden state.

    A product with the activation of the MLP's kind and a norm, then the transposed embedding table
    or a matrix of its own, and a bias for each token (Devlin et al., 2018, arXiv 1810.04805)::

        norm(act(x transform.w + transform.bias)) W + bias
    """

    def __init__(self, cfg: ModelConfig) -> None:
        d, v = cfg.embedding_dim, cfg.vocab_size
        self.act_fn = resolve(cfg.mlp, ACTIVATIONS, "model.mlp")
        self.transform = Affine(cfg, d, has_bias=cfg.mlp_bias)
        self.norm = Norm(cfg, (d,), (None,))
        own = not cfg.tie_embeddings
        self.w = weight((d, v), ("embed", "vocab"), num_in=1) if own else None
        self.bias = weight((v,), ("vocab",), init="zeros")

    def __call__(self, x_btd: jax.Array, table_vd: jax.Array | None, runtime: Runtime) -> jax.Array:
        """Scores, float32 [B, T, V], of as many places as are given; the table only where tied."""
        x_btd = self.norm(self.act_fn(self.transform(x_btd, runtime)))
        if self.w is None:
            if table_vd is None:
                raise ValueError("a tied head scores with the embedding's table, and got None")
            scores = attend_table(x_btd, table_vd, runtime)
        else:
            scores = runtime.dot("btd,dv->btv", x_btd, self.w[...], out_dtype=jnp.float32)
        return add_bias(scores, self.bias)


def pool(x_btd: jax.Array, mask_bt: jax.Array | None, kind: str) -> jax.Array:
    """One state for each text: the mean over its tokens, or that of its first token.

    Args:
      x_btd: hidden states [B, T, D].
      mask_bt: [B, T], not 0 for tokens and 0 for padding, on either side; None has no padding.
      kind: "mean" or "cls".

    Returns:
      [B, D] in `x_btd`'s dtype; the mean is summed in float32. A row without tokens is 0 by "mean".

    Example:
      >>> x_btd = jnp.array([[[8.0], [1.0], [3.0]]])
      >>> mask_bt = jnp.array([[0, 1, 1]])
      >>> pool(x_btd, mask_bt, "mean").tolist(), pool(x_btd, mask_bt, "cls").tolist()
      ([[2.0]], [[1.0]])
    """
    if kind == "cls":
        if mask_bt is None:
            return x_btd[:, 0]
        first_b11 = jnp.argmax(mask_bt != 0, axis=1)[:, None, None]
        return jnp.take_along_axis(x_btd, first_b11, axis=1)[:, 0]
    if mask_bt is None:
        return jnp.mean(x_btd.astype(jnp.float32), axis=1).astype(x_btd.dtype)
    is_token_bt1 = (mask_bt != 0)[:, :, None]
    # Not a product with 0: what padding holds may be infinite.
    kept_btd = jnp.where(is_token_bt1, x_btd.astype(jnp.float32), 0.0)
    count_b1 = jnp.maximum(jnp.sum(is_token_bt1, axis=1, dtype=jnp.float32), 1.0)
    return (jnp.sum(kept_btd, axis=1) / count_b1).astype(x_btd.dtype)
