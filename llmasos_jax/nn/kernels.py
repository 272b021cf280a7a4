"""Which attention kernel runs where.

The kernel follows the platform of the mesh's devices, never `jax.default_backend()`: a TPU program
may be compiled on a host that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.blocked import BLOCK, blocked_attention
from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.cudnn import cudnn_attention, cudnn_refuses
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.scores import masked_scores
from llmasos_jax.nn.splash import splash_attention, splash_fits


def dot_product(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
    runtime: Runtime,
) -> jax.Array:
    """Gives softmax(q k^T * scale + bias) v over what is visible.

    Equation 1 of Vaswani et al., 2017, arXiv 1706.03762, with what came later.

    Args:
      q_btnh: queries [B, T, N, H].
      k_bskh: keys [B, S, K, H], K a divisor of N; query head n reads key head n // (N / K).
      v_bskh: values [B, S, K, H]; their H may be another one, which is then the result's.
      visible: who sees whom.
      scale: multiplies the scores.
      soft_cap: c in c tanh(scores / c), after the scale.
      slopes: ALiBi's slope of each query head, float32 [N]; None for no such bias.
      bias: added to the scores (after the cap), float32 [N, T, S], with branches [B, N, T, S]; None
        for none. A function of your own gets it only from models with relative positions.
      runtime: its platform and `kernels.attention` choose the kernel, see `TABLE`.

    Returns:
      [B, T, N, H] in `q_btnh`'s dtype; the softmax is float32.

    Raises:
      ConfigError: the kernel that is asked for by name cannot do this, or is for other devices.
    """
    options = {"scale": scale, "soft_cap": soft_cap, "slopes": slopes, "bias": bias}
    ask = Ask(q_btnh, k_bskh, v_bskh, visible, options, runtime)
    kernel = choose(ask)
    out_btnz = kernel.run(ask)
    # Splash tags its own: what its backward pass reads, so that it does not run again.
    return out_btnz if kernel.name == "splash" else runtime.tag(out_btnz, "attention")


ATTENTIONS = {"dot_product": dot_product}


@dataclass(frozen=True)
class Ask:
    """What is asked of a kernel: the arguments of `dot_product`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    visible: Visibility
    options: dict[str, Any]  # scale, soft_cap, slopes, bias
    runtime: Runtime

    @property
    def has(self) -> list[str]:
        """Which of the options that not every kernel knows are there."""
        seen = self.visible
        asked = {**self.options, "prefix": seen.k_prefix, "branches": seen.k_branches}
        return [name for name, value in asked.items() if value is not None and name != "scale"]

    def arrays(self) -> tuple[jax.Array, jax.Array, jax.Array, Visibility]:
        """The leading arguments of every kernel."""
        return self.q, self.k, self.v, self.visible


@dataclass(frozen=True)
class Kernel:
    """A row of `TABLE`.

    Attributes:
      name: what `kernels.attention` calls it.
      refuses: why it cannot do what is asked, or None: it can.
      run: computes it.
      is_worth: whether "auto" takes it where it can; a name always does.
    """

    name: str
    refuses: Callable[[Ask], str | None]
    run: Callable[[Ask], jax.Array]
    is_worth: Callable[[Ask], bool] = lambda ask: True


def choose(ask: Ask) -> Kernel:
    """The kernel that `dot_product` runs.

    Raises:
      ConfigError: the kernel that is asked for by name cannot do this, or is for other devices.
    """
    name = ask.runtime.kernels.attention
    kernels = kernels_for(ask.runtime.platform, name)
    if name == "auto":
        return next(k for k in kernels if k.refuses(ask) is None and k.is_worth(ask))
    reason = kernels[0].refuses(ask)
    if reason is not None:
        raise ConfigError(f'kernels.attention="{name}": {reason}; set another one, or "auto"')
    return kernels[0]


def kernels_for(platform: str, name: str) -> tuple[Kernel, ...]:
    """The kernels that `kernels.attention` leaves for a kind of device, best first.

    Raises:
      ConfigError: the one that is named is for other devices.
    """
    kernels = TABLE.get(platform, (REFERENCE,))
    if name == "auto":
        return kernels
    found = tuple(kernel for kernel in kernels if kernel.name == name)
    if not found:
        raise ConfigError(
            f'kernels.attention="{name}" is no kernel for {platform}; it has '
            f'{", ".join(kernel.name for kernel in kernels)}; name one of them, or "auto"'
        )
    return found


def _splash_refuses(ask: Ask) -> str | None:
    more = (ask.options["slopes"], ask.options["bias"], ask.visible.k_prefix)
    if ask.visible.k_branches is None and splash_fits(ask.q.shape, ask.k.shape, *more):
        return None
    return (
        "it takes as many keys as queries, a multiple of 128, without slopes, bias or prefix, "
        f"without branches, and was given {ask.q.shape[1]} queries, {ask.k.shape[1]} keys and "
        f"{ask.has or 'none of them'}"
    )


def _run_splash(ask: Ask) -> jax.Array:
    runtime = ask.runtime
    return splash_attention(
        *ask.arrays(),
        scale=ask.options["scale"],
        soft_cap=ask.options["soft_cap"],
        manual=runtime.manual,
        mesh=runtime.mesh,
        kernels=runtime.kernels,
        tag="attention" if runtime.remat == "tags" else None,
    )


def _cudnn_refuses(ask: Ask) -> str | None:
    if set(ask.has) - {"prefix", "branches"}:
        return f"it does not know {', '.join(ask.has)}"
    return cudnn_refuses(ask.q.shape, ask.v.shape, ask.q.dtype)


def _run_blocked(ask: Ask) -> jax.Array:
    # Sizes of a config are for other devices' kernels too, so only one that was set counts.
    block = ask.runtime.kernels.block_q or BLOCK
    return blocked_attention(*ask.arrays(), **ask.options, block=block, dtype=ask.runtime.dtype)


REFERENCE = Kernel(
    "reference", lambda ask: None, lambda ask: reference(*ask.arrays(), **ask.options)
)
BLOCKED = Kernel(
    "blocked",
    lambda ask: None,
    _run_blocked,
    # With one block there is nothing to leave out.
    is_worth=lambda ask: ask.q.shape[1] > BLOCK,
)
SPLASH = Kernel("splash", _splash_refuses, _run_splash)
CUDNN = Kernel(
    "cudnn",
    _cudnn_refuses,
    lambda ask: cudnn_attention(*ask.arrays(), scale=ask.options["scale"]),
)

# Of each platform's kernels "auto" takes the first that can do what is asked.
TABLE: Mapping[str, tuple[Kernel, ...]] = {
    "cpu": (BLOCKED, REFERENCE),
    "tpu": (SPLASH, REFERENCE),
    "gpu": (CUDNN, REFERENCE, BLOCKED),
}


def reference(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`dot_product` written out with plain products: runs anywhere, holds [B, N, T, S] scores."""
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
    scores = (
        jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32) * scale
    )
    weights = _weights(scores, visible, soft_cap, slopes, bias, head_axis=1).astype(v_bskh.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v_bskh, preferred_element_type=jnp.float32)
    return out.reshape(b, t, n, -1).astype(q_btnh.dtype)


def cached(
    q_btnh: jax.Array,
    cache: LayerCache,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`dot_product` over all slots of a cache, in the cache's own layout."""
    b, t, n, h = q_btnh.shape
    r, _, s = cache.k_rhs.shape
    k = r // b
    g = n // k
    q_rmh = q_btnh.reshape(b, t, k, g, h).transpose(2, 0, 3, 1, 4).reshape(r, g * t, h)
    keys, values = cache.k_rhs.astype(q_rmh.dtype), cache.v_rsh.astype(q_rmh.dtype)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores_rms = product("rmh,rhs->rms", q_rmh, keys) * scale
    scores_kbgts = scores_rms.reshape(k, b, g, t, s)
    weights = _weights(scores_kbgts, visible, soft_cap, slopes, bias, head_axis=0)
    out_rmh = product("rms,rsh->rmh", weights.reshape(r, g * t, s).astype(values.dtype), values)
    out_btkgh = out_rmh.reshape(k, b, g, t, -1).transpose(1, 3, 0, 2, 4)
    return out_btkgh.reshape(b, t, n, -1).astype(q_btnh.dtype)


def _weights(
    scores: jax.Array,
    visible: Visibility,
    soft_cap: float | None,
    slopes: np.ndarray | None,
    bias: jax.Array | None,
    *,
    head_axis: int,
) -> jax.Array:
    """Scores [B, K, G, T, S], or [K, B, G, T, S] if `head_axis` is 0, to weights, float32."""
    scores = masked_scores(scores, visible, soft_cap, slopes, bias, head_axis=head_axis)
    return jax.nn.softmax(scores, axis=-1)
