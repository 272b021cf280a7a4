"""Attention whose keys and values go round a ring of devices, each with its part of the tokens.

Liu et al., 2023, arXiv 2310.01889, with the online softmax of Dao et al., 2022, arXiv 2205.14135.
On four devices, what device 2 reads at each turn (a window, or causality, may need fewer)::

    turn             0    1    2    3
    keys, values of  2    1    0    3

No device holds keys of the whole sequence, nor scores of more than its own queries and `CHUNK`
keys; the backward pass goes round once more and makes the scores again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.scores import MASKED

AXIS = "context"
# Keys whose scores are there at a time, float32 [B, N, T, CHUNK].
CHUNK = 1024


def ring_attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskz: jax.Array,
    visible: Visibility,
    *,
    ways: int,
    scale: float,
    soft_cap: float | None = None,
    slopes: np.ndarray | None = None,
    bias: jax.Array | None = None,
    tag: str | None = None,
) -> jax.Array:
    """`kernels.dot_product` in a region that is manual over `context`.

    Args:
      q_btnh: this device's queries [B, T, N, H].
      k_bskh: this device's keys [B, T, K, H].
      v_bskz: this device's values [B, T, K, Z].
      visible: of these queries, T of them, and of all keys, S of them.
      ways: devices of the ring; S = ways T.
      scale: multiplies the scores.
      soft_cap: c in c tanh(scores / c), after the scale.
      slopes: ALiBi's slope of each query head, float32 [N]; not differentiated.
      bias: added to the scores of these queries and all keys, float32 [N, T, S].
      tag: under which a remat policy may keep what the backward pass reads, so that keys and values
        need not go round once more for it.

    Returns:
      [B, T, N, Z] in `q_btnh`'s dtype.
    """
    t = q_btnh.shape[1]
    plan = _Plan(ways, _turns(visible, t, ways), scale, soft_cap, tag)

    def attend(*args: Any) -> jax.Array:
        return _ring(plan, *args)

    # The compiler would have to guess how the turns are split over heads.
    heads, by_head = PartitionSpec(None, None, "tensor"), PartitionSpec("tensor")
    attend = jax.shard_map(
        attend,
        in_specs=(heads, heads, heads, by_head, by_head, PartitionSpec()),
        out_specs=heads,
        axis_names={"tensor"},
        check_vma=False,
    )
    slopes_n = None if slopes is None else jnp.asarray(slopes)
    return attend(q_btnh, k_bskh, v_bskz, slopes_n, bias, visible)


def _turns(visible: Visibility, t: int, ways: int) -> tuple[int, ...]:
    """The turns at which some device has something to see; at turn i it is i parts back."""
    sees_ahead = not visible.causal or visible.k_prefix is not None
    window = t * ways if visible.window is None else visible.window

    def is_near(parts: int) -> bool:
        return (parts - 1) * t + 1 < window

    # Device d has the keys of d - i, or where that is below 0 those that lie ways - i parts ahead.
    return tuple(
        i for i in range(ways) if i == 0 or is_near(i) or (sees_ahead and is_near(ways - i))
    )


@dataclass(frozen=True)
class _Plan:
    """What is known before there is data."""

    ways: int
    turns: tuple[int, ...]
    scale: float
    soft_cap: float | None
    tag: str | None

    def move(self, tree: Any, steps: int) -> Any:
        """Each device's arrays go to the one `steps` further on."""
        if steps % self.ways == 0:
            return tree
        pairs = [(i, (i + steps) % self.ways) for i in range(self.ways)]
        return jax.tree.map(lambda x: lax.ppermute(x, AXIS, pairs), tree)

    def scores(
        self,
        q_btkgh: jax.Array,
        k_bskh: jax.Array,
        bias_kgts: jax.Array | None,
        slopes_kg: jax.Array | None,
        visible: Visibility,
    ) -> jax.Array:
        """Float32 [B, K, G, T, S] of one chunk of keys."""
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        scores = product("btkgh,bskh->bkgts", q_btkgh, k_bskh) * self.scale
        if self.soft_cap is not None:
            scores = jnp.tanh(scores / self.soft_cap) * self.soft_cap
        if slopes_kg is not None:
            distance = jnp.abs(visible.distance()).astype(jnp.float32)[:, None, None]
            scores = scores - slopes_kg[None, :, :, None, None] * distance
        if bias_kgts is not None:
            scores = scores + bias_kgts[None]
        return jnp.where(visible.mask()[:, None, None], scores, MASKED)


@dataclass(frozen=True)
class _Chunks:
    """One device's keys and values, cut into chunks that are read one after the other."""

    num: int
    size: int
    first: jax.Array  # place of the first key in the sequence

    @classmethod
    def at(cls, turn: int, ways: int, num_keys: int) -> _Chunks:
        cuts = (n for n in range(1, num_keys // 128 + 1) if num_keys % n == 0)
        num = next((n for n in cuts if num_keys // n <= CHUNK), 1)
        source = (lax.axis_index(AXIS) - turn) % ways
        return cls(num, num_keys // num, source * num_keys)

    def cut(self, x_bs: jax.Array) -> jax.Array:
        """[B, S, ...] as [num, B, size, ...]."""
        b, _, *rest = x_bs.shape
        return jnp.moveaxis(x_bs.reshape(b, self.num, self.size, *rest), 1, 0)

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse of `cut`."""
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], self.num * self.size, *x.shape[3:])

    def place(self, index: jax.Array) -> jax.Array:
        """Where chunk `index` begins in the sequence."""
        return self.first + index * self.size

    def columns(self, x: Any, index: jax.Array, axis: int) -> Any:
        """Of an array over all keys what belongs to this chunk; None stays None."""
        if x is None:
            return None
        return lax.dynamic_slice_in_dim(x, self.place(index), self.size, axis)

    def visible(self, visible: Visibility, index: jax.Array) -> Visibility:
        """Who of the queries sees whom of this chunk."""
        return dataclasses.replace(
            visible,
            k_index=self.columns(visible.k_index, index, 1),
            k_segments=self.columns(visible.k_segments, index, 1),
            k_prefix=self.columns(visible.k_prefix, index, 1),
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(plan: _Plan, *args: Any) -> jax.Array:
    return _forward(plan, *args)[0]


def _forward(
    plan: _Plan,
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskz: jax.Array,
    slopes_n: jax.Array | None,
    bias_nts: jax.Array | None,
    visible: Visibility,
) -> tuple[jax.Array, Any]:
    kept = (q_btnh, k_bskh, v_bskz, slopes_n, bias_nts, visible)
    by_key = _ByKey.of(*kept)
    b, t, k, g, _ = by_key.q_btkgh.shape
    row = (b, k, g, t)
    state = (
        jnp.full(row, MASKED, jnp.float32),
        jnp.zeros(row, jnp.float32),
        jnp.zeros((*row, v_bskz.shape[-1]), jnp.float32),
    )
    pair, at = (k_bskh, v_bskz), 0
    for turn in plan.turns:
        pair, at = plan.move(pair, turn - at), turn
        chunks = _Chunks.at(turn, plan.ways, k_bskh.shape[1])

        def add(state: Any, part: Any, chunks: _Chunks = chunks) -> tuple[Any, None]:
            index, k_bskh, v_bskz = part
            top, total, out = state
            scores = by_key.scores(plan, chunks, index)(by_key.q_btkgh, k_bskh, None)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.exp(scores - new_top[..., None])
            more = _weigh(weights, v_bskz)
            total = total * shrink + jnp.sum(weights, axis=-1)
            return (new_top, total, out * shrink[..., None] + more), None

        parts = (jnp.arange(chunks.num, dtype=jnp.int32), *map(chunks.cut, pair))
        state, _ = lax.scan(add, state, parts)
    top, total, out = state
    log_bkgt = top + jnp.log(total)
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4)
    out_btnz = out.reshape(b, t, k * g, -1).astype(q_btnh.dtype)
    if plan.tag is not None:
        out_btnz, log_bkgt = (checkpoint_name(x, plan.tag) for x in (out_btnz, log_bkgt))
    return out_btnz, (kept, out_btnz, log_bkgt)


def _backward(plan: _Plan, saved: Any, grad_btnz: jax.Array) -> tuple[Any, ...]:
    """As in arXiv 2205.14135, appendix B.4; gradients of keys and values travel with them."""
    kept, out_btnz, log_bkgt = saved
    q_btnh, k_bskh, v_bskz, slopes_n, bias_nts, visible = kept
    by_key = _ByKey.of(*kept)
    b, t, k, g, _ = by_key.q_btkgh.shape
    split = lambda x: x.reshape(b, t, k, g, -1).transpose(0, 2, 3, 1, 4)
    grad = split(grad_btnz)
    both = grad.astype(jnp.float32) * split(out_btnz).astype(jnp.float32)
    even_bkgt = jnp.sum(both, axis=-1)
    zeros = lambda x: None if x is None else jnp.zeros(x.shape, jnp.float32)
    sums: Any = (zeros(by_key.q_btkgh), zeros(by_key.bias_kgts))
    ring, at = (k_bskh, v_bskz, zeros(k_bskh), zeros(v_bskz)), 0
    for turn in plan.turns:
        ring, at = plan.move(ring, turn - at), turn
        chunks = _Chunks.at(turn, plan.ways, k_bskh.shape[1])

        def add(sums: Any, part: Any, chunks: _Chunks = chunks) -> tuple[Any, Any]:
            index, k_bskh, v_bskz = part
            grad_q, grad_bias = sums
            bias = chunks.columns(by_key.bias_kgts, index, 3)
            score = by_key.scores(plan, chunks, index)
            scores, pull = jax.vjp(score, by_key.q_btkgh, k_bskh, bias)
            weights = jnp.exp(scores - log_bkgt[..., None])
            product = partial(jnp.einsum, preferred_element_type=jnp.float32)
            grad_v = product("bkgts,bkgtz->bskz", weights.astype(v_bskz.dtype), grad)
            grad_weights = product("bkgtz,bskz->bkgts", grad, v_bskz)
            more_q, grad_k, more_bias = pull(weights * (grad_weights - even_bkgt[..., None]))
            if grad_bias is not None:
                old = chunks.columns(grad_bias, index, 3)
                grad_bias = lax.dynamic_update_slice_in_dim(
                    grad_bias, old + more_bias, chunks.place(index), 3
                )
            sums = (grad_q + more_q.astype(jnp.float32), grad_bias)
            return sums, (grad_k.astype(jnp.float32), grad_v)

        parts = (jnp.arange(chunks.num, dtype=jnp.int32), *map(chunks.cut, ring[:2]))
        sums, more = lax.scan(add, sums, parts)
        grads = [old + chunks.join(new) for old, new in zip(ring[2:], more, strict=True)]
        ring = (*ring[:2], *grads)
    grad_k, grad_v = plan.move(ring[2:], -at)
    grad_q, grad_bias = sums
    if bias_nts is not None:
        grad_bias = grad_bias.reshape(bias_nts.shape)
    grad_q = grad_q.reshape(q_btnh.shape).astype(q_btnh.dtype)
    grad_k, grad_v = grad_k.astype(k_bskh.dtype), grad_v.astype(v_bskz.dtype)
    return grad_q, grad_k, grad_v, zeros(slopes_n), grad_bias, None


_ring.defvjp(_forward, _backward)


def _weigh(weights_bkgts: jax.Array, v_bskz: jax.Array) -> jax.Array:
    weights = weights_bkgts.astype(v_bskz.dtype)
    return jnp.einsum("bkgts,bskz->bkgtz", weights, v_bskz, preferred_element_type=jnp.float32)


@dataclass(frozen=True)
class _ByKey:
    """What belongs to query heads, arranged by the key head that they read."""

    q_btkgh: jax.Array
    slopes_kg: jax.Array | None
    bias_kgts: jax.Array | None
    visible: Visibility

    @classmethod
    def of(
        cls, q_btnh: jax.Array, k_bskh: jax.Array, v_bskz: Any, slopes_n: Any, bias_nts: Any,
        visible: Visibility,
    ) -> _ByKey:  # fmt: skip
        del v_bskz
        b, t, n, h = q_btnh.shape
        k = k_bskh.shape[2]
        q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
        slopes_kg = None if slopes_n is None else slopes_n.reshape(k, n // k)
        bias_kgts = None if bias_nts is None else bias_nts.reshape(k, n // k, *bias_nts.shape[1:])
        return cls(q_btkgh, slopes_kg, bias_kgts, visible)

    def scores(self, plan: _Plan, chunks: _Chunks, index: jax.Array) -> Callable[..., jax.Array]:
        """`(q, k, bias) -> scores` of a chunk; where bias is None, it is this one's own."""
        visible = chunks.visible(self.visible, index)
        own = chunks.columns(self.bias_kgts, index, 3)

        def score(q_btkgh: jax.Array, k_bskh: jax.Array, bias_kgts: Any) -> jax.Array:
            bias_kgts = own if bias_kgts is None else bias_kgts
            return plan.scores(q_btkgh, k_bskh, bias_kgts, self.slopes_kg, visible)

        return score
