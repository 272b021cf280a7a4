"""Attention with its tokens on several devices, by itself: both exchanges and the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tolerances import PARITY

from llmasos_jax.config.devices import MeshConfig
from llmasos_jax.nn import alibi, ring
from llmasos_jax.nn.context import attend_split, over_sequence, own_heads
from llmasos_jax.nn.kernels import dot_product, reference
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.ring import _turns
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.rules import training_rules

B, T = 4, 16
QUICK = {"xla_backend_optimization_level": 0}
EXCHANGES = ("all_to_all", "ring")


def manual(exchange: str, data: int = 1, context: int = 4, tensor: int = 1) -> Manual:
    cfg = MeshConfig(data=data, context=context, tensor=tensor)
    mesh = make_mesh(cfg, jax.devices()[: data * context * tensor])
    return Manual(mesh, training_rules(mesh), exchange)


# Heads N, key heads K, widths H and Z, and what attention has to do.
ATTENTIONS = {
    "window, cap, fewer key heads": (8, 2, 8, 8, {"window": 5}, {"soft_cap": 5.0}),
    "alibi, prefix": (4, 2, 8, 8, {}, {"slopes": alibi.slopes(4)}),
    "both ways, bias, other width": (4, 4, 8, 4, {"causal": False, "window": 6}, {"bias": True}),
}


@functools.cache
def arrays(name: str):
    n, k, h, z, _, options = ATTENTIONS[name]
    rng = np.random.default_rng(0)
    q, key, v, out = (
        rng.normal(size=(B, T, *tail)).astype(np.float32)
        for tail in ((n, h), (k, h), (k, z), (n, z))
    )
    bias = rng.normal(size=(n, T, T)).astype(np.float32) if "bias" in options else None
    # Documents that cross the borders between devices, and padding.
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    segments[:, -2:] = 0
    prefix = rng.random((B, T)) < 0.3 if "prefix" in name else None
    return (q, key, v, bias), out, segments, prefix


def attention_and_gradients(name: str, attend):
    """Of `attend(q, k, v, bias, segments, prefix)`."""
    args, cotangent, *rest = arrays(name)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(*args):
        out, pull = jax.vjp(lambda *args: attend(*args, *rest), *args)
        return out, *pull(cotangent)

    return jax.device_get(run(*args))


@functools.cache
def expected_attention(name: str):
    visibility, options = ATTENTIONS[name][4:]
    index = jnp.arange(T, dtype=jnp.int32)[None]

    def attend(q, k, v, bias, segments, prefix):
        visible = Visibility(index, index, segments, segments, prefix, **visibility)
        return reference(q, k, v, visible, scale=0.4, **options | {"bias": bias})

    return attention_and_gradients(name, attend)


def split_attention(name: str, manual: Manual):
    visibility, options = ATTENTIONS[name][4:]
    runtime = Runtime(manual=manual)

    def attend_here(q, k, v, bias, segments, prefix):
        index = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
        visible = Visibility(index, index, segments, segments, prefix, **visibility)
        visible = over_sequence(visible, runtime)
        if bias is not None:
            if manual.exchange == "ring":
                bias = manual.own_tokens(bias)
            bias = own_heads(bias, runtime)
        more = options | {"bias": bias}
        return attend_split(dot_product, (q, k, v), visible, runtime, scale=0.4, **more)

    tokens = manual.spec("batch", "sequence")
    in_specs = (tokens, tokens, tokens, PartitionSpec(), tokens, tokens)
    return attention_and_gradients(name, manual.shard_map(attend_here, in_specs, tokens))


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_attention_over_split_tokens_equals_the_reference(exchange, name):
    sizes = {"context": 4, "tensor": 1} if "bias" in name else {"context": 4, "tensor": 2}
    if exchange == "all_to_all" and "alibi" in name:
        sizes = {"data": 2, "context": 2, "tensor": 2}
    found = split_attention(name, manual(exchange, **sizes))
    for a, b in zip(found, expected_attention(name), strict=True):
        if b is not None:
            assert np.linalg.norm(a - b) <= PARITY * np.linalg.norm(b)


def test_a_ring_reads_keys_in_chunks(monkeypatch):
    """Two devices, two chunks of 128 keys on each; documents, a window, a cap and a bias."""
    monkeypatch.setattr(ring, "CHUNK", 128)
    t, here = 512, manual("ring", context=2)
    rng = np.random.default_rng(0)
    q, k, v, bias = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((1, t, 2, 4), (1, t, 1, 4), (1, t, 1, 4), (2, t, t))
    )
    segments = np.sort(rng.integers(0, 4, (1, t)), axis=1).astype(np.int32)

    def attend(q, k, v, bias, segments):
        runtime = Runtime(manual=here if q.shape[1] < t else None)
        index = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
        visible = Visibility(index, index, segments, segments, window=200)
        visible, options = over_sequence(visible, runtime), {"scale": 0.4, "soft_cap": 5.0}
        if runtime.manual is None:
            return reference(q, k, v, visible, bias=bias, **options)
        bias = here.own_tokens(bias)
        return attend_split(dot_product, (q, k, v), visible, runtime, bias=bias, **options)

    tokens = here.spec("batch", "sequence")
    split = here.shard_map(attend, (tokens, tokens, tokens, PartitionSpec(), tokens), tokens)

    def gradients(attend):
        def loss(*args):
            return jnp.sum(attend(*args, segments) * q)

        run = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
        return jax.tree.leaves(jax.jit(run, compiler_options=QUICK)(q, k, v, bias))

    for a, b in zip(gradients(split), gradients(attend), strict=True):
        assert np.linalg.norm(a - b) <= PARITY * np.linalg.norm(b)


def test_an_attention_of_your_own_sees_whole_sequences():
    here = manual("all_to_all", context=4, tensor=2)
    seen = []

    def attend(q_btnh, k_bskh, v_bskz, visible, *, slopes, runtime, **options):
        mask = visible.mask()
        seen.append([x.shape for x in (q_btnh, k_bskh, v_bskz, slopes, mask)])
        return q_btnh

    def attend_here(q, k):
        index = jnp.arange(T // 4, dtype=jnp.int32)[None]
        visible = over_sequence(Visibility(index, index, None, None), Runtime(manual=here))
        options = {"scale": 1.0, "slopes": alibi.slopes(8)}
        return attend_split(attend, (q, k, k), visible, Runtime(manual=here), **options)

    tokens = here.spec("batch", "sequence")
    run = here.shard_map(attend_here, (tokens, tokens), tokens)
    q, k = (jax.ShapeDtypeStruct((B, T, n, 8), jnp.float32) for n in (8, 2))
    assert jax.eval_shape(jax.jit(run), q, k).shape == q.shape
    # A quarter of the query heads; two key heads, one for each `tensor` device, are repeated.
    assert seen[0] == [(B, T, 2, 8), (B, T, 2, 8), (B, T, 2, 8), (2,), (1, T, T)]


def test_turns_that_show_nothing_are_left_out():
    index = jnp.arange(8, dtype=jnp.int32)[None]
    turns = lambda **options: _turns(Visibility(index, index, None, None, **options), 8, 4)
    assert turns() == (0, 1, 2, 3)
    assert turns(window=1) == (0,)
    assert turns(window=2) == turns(window=9) == (0, 1)
    assert turns(window=10) == (0, 1, 2)
    assert turns(window=9, causal=False) == (0, 1, 3)
