"""Attention where the tokens of a sequence are split over the mesh axis `context`.

Two exchanges (`MeshConfig.context_exchange`), on two devices with two heads and four tokens::

                    before          all_to_all                    ring
    device 0        t0 t1, h0 h1    t0 t1 t2 t3, h0               t0 t1, h0 h1; keys of t2 t3 pass
    device 1        t2 t3, h0 h1    t0 t1 t2 t3, h1               t2 t3, h0 h1; keys of t0 t1 pass

"all_to_all" (Jacobs et al., 2023, arXiv 2309.14509) lets each device run the ordinary kernel on
whole sequences with its share of the heads, and swaps back. "ring" is in `ring.py`: any number of
heads will do, and keys of a whole sequence are nowhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.ring import AXIS, ring_attention
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.manual import Manual

_HEADS = PartitionSpec(None, None, "tensor")


def check_context(cfg: Config, manual: Manual) -> None:
    """Refuses what is not computed with tokens split over devices.

    Raises:
      ConfigError: it says which field, and what to change.
    """
    ways, model = manual.context, cfg.model
    if ways == 1:
        return
    mesh = f"mesh.context={ways}"
    heads = model.query_heads // manual.mesh.shape["tensor"]
    length = cfg.data.sequence_length
    _require(
        length % ways == 0,
        f"{mesh} does not divide data.sequence_length={length}; make it a multiple of {ways}",
    )
    _require(
        not model.encoder.num_layers,
        f"{mesh} splits the tokens of one stack, and model.encoder.num_layers="
        f"{model.encoder.num_layers} makes two; set mesh.context=1 for an encoder-decoder",
    )
    if manual.exchange == "all_to_all":
        _require(
            heads % ways == 0,
            f'mesh.context_exchange="all_to_all" gives each of {ways} devices a share of the heads '
            f"and {mesh} does not divide {heads}, model.num_heads={model.query_heads} / mesh.tensor"
            f'={manual.mesh.shape["tensor"]}; set mesh.context_exchange="ring", or mesh.context to '
            "a divisor",
        )
        return
    _require(
        model.attention == "dot_product",
        f'mesh.context_exchange="ring" computes attention itself, and model.attention='
        f'"{model.attention}" is another one; set mesh.context_exchange="all_to_all", which gives '
        "it whole sequences",
    )
    _require(
        cfg.kernels.attention == "auto",
        f'mesh.context_exchange="ring" computes attention itself, and kernels.attention='
        f'"{cfg.kernels.attention}" names a kernel for whole sequences; set it to "auto", or '
        'mesh.context_exchange="all_to_all"',
    )
    _require(
        cfg.kernels == KernelsConfig(),
        f'mesh.context_exchange="ring" has no kernel whose blocks {cfg.kernels} could be; leave '
        'them None, or set mesh.context_exchange="all_to_all"',
    )


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise ConfigError(message)


def over_sequence(visible: Visibility, runtime: Runtime) -> Visibility:
    """What attention has to know of the whole sequence, from what is known of the tokens here.

    Args:
      visible: of this device's tokens; places count from 0.
      runtime: how the model runs.

    Returns:
      Of all keys and, for "ring", this device's queries; for "all_to_all", all queries. The same
      where no tokens are split.
    """
    manual = runtime.manual
    if manual is None or manual.context == 1:
        return visible
    t = visible.q_index.shape[1]
    whole = lambda x: None if x is None else manual.whole_tokens(x)
    all_index = jnp.arange(t * manual.context, dtype=jnp.int32)[None]
    visible = dataclasses.replace(
        visible,
        q_index=visible.q_index + manual.first_token(t),
        k_index=all_index,
        k_segments=whole(visible.k_segments),
        k_prefix=whole(visible.k_prefix),
    )
    if manual.exchange == "ring":
        return visible
    return dataclasses.replace(visible, q_index=all_index, q_segments=visible.k_segments)


def own_heads(x: jax.Array, runtime: Runtime) -> jax.Array:
    """Of an array over query heads, [N, ...], those that this device attends with."""
    manual = runtime.manual
    if manual is None or manual.context == 1 or manual.exchange == "ring":
        return x

    def own(x: jax.Array) -> jax.Array:
        num = x.shape[0] // manual.context
        return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * num, num, axis=0)

    return _by_heads(own, PartitionSpec("tensor"), PartitionSpec("tensor"))(x)


def attend_split(
    attend_fn: Callable[..., jax.Array],
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    visible: Visibility,
    runtime: Runtime,
    **options: Any,
) -> jax.Array:
    """`attend_fn` over whole sequences, of which this device has a part.

    Args:
      attend_fn: of the signature of `kernels.dot_product`; "ring" computes that one itself.
      qkv: this device's queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, Z].
      visible: what `over_sequence` gives.
      runtime: how to run; `manual` says how many devices share a sequence, and the exchange.
      **options: of `attend_fn`; `bias` is of the heads that `own_heads` gives.

    Returns:
      [B, T, N, Z], of this device's tokens.
    """
    manual = runtime.manual
    if manual is None or manual.context == 1:
        return attend_fn(*qkv, visible, runtime=runtime, **options)
    if manual.exchange == "ring":
        tag = "attention" if runtime.remat == "tags" else None
        return ring_attention(*qkv, visible, ways=manual.context, tag=tag, **options)
    if options.get("slopes") is not None:
        options["slopes"] = own_heads(jnp.asarray(options["slopes"]), runtime)
    q_btnh, k_bskh, v_bskz = _by_heads(_to_heads, (_HEADS,) * 3, (_HEADS,) * 3)(*qkv)
    out_btnz = attend_fn(q_btnh, k_bskh, v_bskz, visible, runtime=runtime, **options)
    return _by_heads(_to_tokens, _HEADS, _HEADS)(out_btnz)


def _by_heads(fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`fn` on each `tensor` device's own heads: left to the compiler, it would move them first."""
    return jax.shard_map(
        fn, in_specs=in_specs, out_specs=out_specs, axis_names={"tensor"}, check_vma=False
    )


def _to_heads(*qkv: jax.Array) -> tuple[jax.Array, ...]:
    """All tokens of some heads, from some tokens of all heads."""
    ways = lax.axis_size(AXIS)
    # Where there are fewer key heads than devices, several get the same one.
    times = ways // math.gcd(ways, qkv[1].shape[2])
    repeated = (jnp.repeat(x, times, axis=2) if times > 1 else x for x in qkv[1:])
    return tuple(
        lax.all_to_all(x, AXIS, split_axis=2, concat_axis=1, tiled=True)
        for x in (qkv[0], *repeated)
    )


def _to_tokens(out_btnz: jax.Array) -> jax.Array:
    return lax.all_to_all(out_btnz, AXIS, split_axis=1, concat_axis=2, tiled=True)


def states_at(x_btd: jax.Array, places_bm: jax.Array, runtime: Runtime) -> jax.Array:
    """The states at places that may be another device's, a share of them for each device.

    Args:
      x_btd: states of this device's tokens, [B, T, D].
      places_bm: int32 [B, M], places in the whole sequence.
      runtime: how the model runs.

    Returns:
      [B, M, D]; of tokens split over c devices [B, ceil(M / c), D], those of `share`.
    """
    manual = runtime.manual
    if manual is None or manual.context == 1:
        return jnp.take_along_axis(x_btd, places_bm[:, :, None], axis=1)
    t = x_btd.shape[1]
    here_bm = _padded(places_bm, manual.context) - manual.first_token(t)
    picked_bmd = jnp.take_along_axis(x_btd, jnp.clip(here_bm, 0, t - 1)[:, :, None], axis=1)
    is_here_bm1 = ((here_bm >= 0) & (here_bm < t))[:, :, None]
    picked_bmd = jnp.where(is_here_bm1, picked_bmd, jnp.zeros_like(picked_bmd))
    # Each place is on one device, so this sum moves numbers and rounds nothing.
    return lax.psum_scatter(picked_bmd, AXIS, scatter_dimension=1, tiled=True)


def share(x_bm: jax.Array, runtime: Runtime) -> jax.Array:
    """Of [B, M], which all devices that share a row have, the share of this one; 0 fills it up."""
    manual = runtime.manual
    if manual is None or manual.context == 1:
        return x_bm
    return manual.own_tokens(_padded(x_bm, manual.context))


def once(x: jax.Array, runtime: Runtime) -> jax.Array:
    """`x` on the device with the first tokens of a row, 0 on the others: for sums over devices."""
    manual = runtime.manual
    if manual is None or manual.context == 1:
        return x
    return jnp.where(manual.first_token(1) == 0, x, jnp.zeros_like(x))


def _padded(x_bm: jax.Array, ways: int) -> jax.Array:
    return jnp.pad(x_bm, ((0, 0), (0, -x_bm.shape[1] % ways)))
