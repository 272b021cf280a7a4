"""Every attention kernel against the reference: values and gradients, with every option."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.blocked import blocked_attention
from llmasos_jax.nn.cudnn import cudnn_attention, cudnn_refuses
from llmasos_jax.nn.kernels import TABLE, Ask, choose, dot_product, reference
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime

B, T, N, K, H = 2, 40, 4, 2, 8
QUICK = {"xla_backend_optimization_level": 0}
# A block of 16 leaves one of 8 at the end.
OPTIONS = {
    "causal": {},
    "both ways": {"causal": False},
    "window": {"window": 5},
    "window both ways": {"window": 20, "causal": False},
    "soft cap": {"soft_cap": 2.0, "window": 17},
    "slopes": {"slopes": np.array([0.5, 0.2, 0.1, 0.05], np.float32)},
    "bias": {"bias": True, "soft_cap": 3.0},
    "prefix": {"prefix": True},
    "prefix and window": {"prefix": True, "window": 9},
    "one document": {"segments": False},
    "wider values": {"value_width": 12},
    "other keys": {"causal": False, "keys": 24},
    "branches": {"branches": True},
    "branches and window": {"branches": True, "window": 5},
    "branches and prefix": {"branches": True, "prefix": True, "segments": False},
    "branches and slopes": {
        "branches": True,
        "slopes": np.array([0.5, 0.2, 0.1, 0.05], np.float32),
    },
    "branches and bias": {"branches": True, "bias": True},
}
NOT_OF_CUDNN = {"soft cap", "slopes", "bias", "wider values"}
NOT_OF_CUDNN |= {"branches and slopes", "branches and bias"}


def case(name: str, t: int = T):
    """Arrays, who sees whom, and the options of one row above; documents begin anywhere."""
    asked = dict(OPTIONS[name])
    rng = np.random.default_rng(sorted(OPTIONS).index(name))
    s = asked.pop("keys", t)
    segments = lambda length: jnp.asarray(np.sort(rng.integers(0, 3, (B, length)), 1), jnp.int32)
    q_segments = segments(t)
    k_segments = q_segments if s == t else segments(s)
    if not asked.pop("segments", True):
        q_segments = k_segments = None
    prefix = jnp.asarray(rng.random((B, s)) < 0.3) if asked.pop("prefix", False) else None
    visible = Visibility(
        jnp.arange(t, dtype=jnp.int32)[None],
        jnp.arange(s, dtype=jnp.int32)[None],
        q_segments,
        k_segments,
        prefix,
        causal=asked.pop("causal", True),
        window=asked.pop("window", None),
    )
    has_branches = asked.pop("branches", False)
    if has_branches:
        visible = branched(visible)
    width = asked.pop("value_width", H)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    arrays = [draw(B, t, N, H), draw(B, s, K, H), draw(B, s, K, width)]
    of_row = (B,) if has_branches else ()
    arrays += [draw(*of_row, N, t, s)] if asked.pop("bias", False) else []
    return arrays, draw(B, t, N, width), visible, asked


def branched(visible: Visibility) -> Visibility:
    """A third of each document is what its branches of five tokens have in common."""
    segments = visible.q_segments
    segments = np.zeros((B, visible.q_index.shape[1])) if segments is None else np.asarray(segments)
    positions, branches = np.zeros((2, *segments.shape), np.int32)
    for row, own in enumerate(segments):
        for number in set(own):
            at = np.flatnonzero(own == number)
            past = np.arange(len(at)) - max(1, len(at) // 3)
            positions[row, at] = np.where(past < 0, past, past % 5) - past[0]
            branches[row, at] = np.where(past < 0, 0, 1 + past // 5)
    index, numbers = jnp.asarray(positions), jnp.asarray(branches)
    return dataclasses.replace(
        visible, q_index=index, k_index=index, q_branches=numbers, k_branches=numbers
    )


def test_a_branch_sees_what_all_have_in_common_and_itself() -> None:
    """The row of test: x x x a a b b, with a window of three."""
    index, numbers = (jnp.array([x]) for x in ([0, 1, 2, 3, 4, 3, 4], [0, 0, 0, 1, 1, 2, 2]))
    visible = Visibility(index, index, None, None, window=3, q_branches=numbers, k_branches=numbers)
    rows = ["".join("x"[: int(seen)] or "." for seen in row) for row in visible.mask()[0]]
    assert rows == ["x......", "xx.....", "xxx....", ".xxx...", "..xxx..", ".xx..x.", "..x..xx"]


def value_and_gradients(attend, name: str):
    arrays, cotangent, visible, options = case(name)

    def run(*arrays):
        bias = {"bias": arrays[3]} if len(arrays) > 3 else {}
        return attend(*arrays[:3], visible, scale=0.3, **options, **bias)

    def both(*arrays):
        out, pull = jax.vjp(run, *arrays)
        return out, *pull(cotangent)

    return jax.jit(both, compiler_options=QUICK)(*arrays)


@functools.cache
def wanted(name: str):
    return value_and_gradients(reference, name)


def assert_near(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert jnp.linalg.norm(a - b) <= PARITY * jnp.linalg.norm(b)


@pytest.mark.parametrize("name", OPTIONS)
def test_blocked_equals_the_reference(name: str) -> None:
    attend = functools.partial(blocked_attention, block=16)
    assert_near(value_and_gradients(attend, name), wanted(name))


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - NOT_OF_CUDNN))
def test_what_cudnn_is_asked_for_equals_the_reference(name: str) -> None:
    """The same call as on a GPU, with XLA behind it."""
    attend = functools.partial(cudnn_attention, implementation="xla")
    assert_near(value_and_gradients(attend, name), wanted(name))


def test_a_row_that_sees_nothing_is_the_reference_s() -> None:
    """Even weights, and no gradient of queries and keys."""
    x = jax.random.normal(jax.random.key(0), (1, 32, 1, 8))
    index = jnp.arange(32, dtype=jnp.int32)[None]
    none = Visibility(index, index, index * 0 + 1, index * 0 + 2, causal=False)
    for attend in (reference, functools.partial(blocked_attention, block=16)):
        out, pull = jax.vjp(lambda q, k, v, a=attend: a(q, k, v, none, scale=1.0), x, x, x)
        np.testing.assert_allclose(out, jnp.mean(x, 1, keepdims=True) + 0 * x, atol=PARITY)
        grad_q, grad_k, grad_v = pull(x)
        assert not jnp.any(grad_q) and not jnp.any(grad_k)
        np.testing.assert_allclose(grad_v, jnp.mean(x, 1, keepdims=True) + 0 * x, atol=PARITY)


def test_slopes_may_be_of_this_device_alone() -> None:
    """Where heads are swapped for tokens, a device picks its slopes when the program runs."""
    (q, k, v), cotangent, visible, options = case("slopes")

    def loss(q, slopes, attend):
        def layer(x, _):
            return attend(x, k, v, visible, scale=0.3, slopes=slopes), None

        return jnp.sum(jax.lax.scan(layer, q, None, length=2)[0] * cotangent)

    grad = jax.jit(jax.grad(loss), static_argnums=2, compiler_options=QUICK)
    attend = functools.partial(blocked_attention, block=16)
    found, expected = (grad(q, options["slopes"], fn) for fn in (attend, reference))
    assert jnp.linalg.norm(found - expected) <= PARITY * jnp.linalg.norm(expected)


def test_bfloat16_products_between_float32() -> None:
    attend = functools.partial(blocked_attention, block=16, dtype=jnp.bfloat16)
    for a, b in zip(value_and_gradients(attend, "causal"), wanted("causal"), strict=True):
        assert a.dtype == jnp.float32
        assert 1e-6 < jnp.linalg.norm(a - b) / jnp.linalg.norm(b) < 2**-6


def test_blocked_never_holds_all_scores() -> None:
    """At 2048 tokens, forward and backward: less than half of one array [B, N, T, S]."""
    b, t, n = 1, 2048, 4
    index = jnp.arange(t, dtype=jnp.int32)[None]
    shape = jax.ShapeDtypeStruct((b, t, n, 16), jnp.float32)
    temporary = {}
    for attend in (reference, blocked_attention):

        def run(q, k, v, attend=attend):
            visible = Visibility(index, index, index, index)
            return jnp.sum(attend(q, k, v, visible, scale=1.0) ** 2)

        lowered = jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(*(shape,) * 3)
        compiled = lowered.compile(compiler_options=QUICK)
        temporary[attend] = compiled.memory_analysis().temp_size_in_bytes
        if attend is blocked_attention:
            assert f"{t},{t}]" not in compiled.as_text()
    assert temporary[reference] > b * n * t * t * 4
    assert temporary[blocked_attention] < 0.5 * b * n * t * t * 4


def ask(platform: str, name: str = "auto", *, t: int = 256, dtype=jnp.float32, **options) -> Ask:
    x = jax.ShapeDtypeStruct((B, t, N, 64), dtype)
    index = np.arange(t)[None]
    settings = {"scale": 1.0, "soft_cap": None, "slopes": None, "bias": None, **options}
    runtime = Runtime(platform=platform, kernels=KernelsConfig(attention=name))
    return Ask(x, x, x, Visibility(index, index, None, None), settings, runtime)


def test_the_first_kernel_that_can_do_it_is_chosen(monkeypatch) -> None:
    chosen = lambda *args, **options: choose(ask(*args, **options)).name
    assert chosen("cpu") == "blocked"
    assert chosen("cpu", t=128) == "reference"
    assert chosen("tpu") == "splash"
    assert chosen("tpu", bias=1) == "reference"
    asked = ask("tpu")
    branched = dataclasses.replace(asked.visible, q_branches=1, k_branches=1)
    assert choose(dataclasses.replace(asked, visible=branched)).name == "reference"
    assert chosen("gpu", dtype=jnp.float32) == "reference"
    monkeypatch.setattr("llmasos_jax.nn.cudnn.PLUGINS", ("jax",))
    assert chosen("gpu", dtype=jnp.bfloat16) == "cudnn"
    assert chosen("gpu", dtype=jnp.bfloat16, soft_cap=1.0) == "reference"
    assert chosen("cpu", "reference") == "reference"
    assert chosen("cpu", "blocked", t=8) == "blocked"
    assert chosen("tpu", "reference") == "reference"


@pytest.mark.parametrize(
    ("platform", "name", "options", "says"),
    [
        ("cpu", "splash", {}, "no kernel for cpu; it has blocked, reference"),
        ("tpu", "splash", {"t": 100}, "a multiple of 128"),
        ("tpu", "splash", {"bias": 1}, "without slopes, bias or prefix"),
        ("gpu", "cudnn", {"soft_cap": 1.0}, "does not know soft_cap"),
        ("gpu", "cudnn", {}, "not float32"),
        ("gpu", "splash", {}, "no kernel for gpu"),
    ],
)
def test_a_named_kernel_that_cannot_do_it_says_why(platform, name, options, says) -> None:
    with pytest.raises(ConfigError, match=says):
        choose(ask(platform, name, **options))


def test_which_heads_cudnn_takes(monkeypatch) -> None:
    monkeypatch.setattr("llmasos_jax.nn.cudnn.PLUGINS", ("jax",))
    refuses = lambda width, values: cudnn_refuses((1, 8, 2, width), (1, 8, 2, values), jnp.bfloat16)
    assert refuses(64, 64) is None and refuses(128, 128) is None
    assert "multiple of 8" in refuses(60, 60) and "at most 128" in refuses(256, 256)
    assert "as wide as its keys" in refuses(64, 32)
    monkeypatch.setattr("llmasos_jax.nn.cudnn.PLUGINS", ("no_such_plugin",))
    assert "not installed" in refuses(64, 64)


def test_a_gpu_program_calls_cudnn(monkeypatch) -> None:
    """Lowered for CUDA on a machine without it: the call is in the program, and no mask is."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    monkeypatch.setattr("llmasos_jax.nn.cudnn.PLUGINS", ("jax",))
    x = jax.ShapeDtypeStruct((B, 256, N, 64), jnp.bfloat16)
    index = jnp.arange(256, dtype=jnp.int32)[None]

    def run(q, k, v, segments=None):
        visible = Visibility(index, index, segments, segments, window=100)
        runtime = Runtime(platform="gpu", act_dtype=jnp.bfloat16)
        out = dot_product(q, k, v, visible, scale=0.1, runtime=runtime)
        return jnp.sum(out.astype(jnp.float32))

    def program(*more):
        traced = jax.jit(jax.grad(run, argnums=(0, 1, 2))).trace(x, x, x, *more)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    text = program()
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    assert "256x256" not in text
    masked = program(jax.ShapeDtypeStruct((B, 256), jnp.int32))
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in masked


def test_a_table_names_each_kernel_once_and_ends_with_one_that_does_all() -> None:
    for kernels in TABLE.values():
        names = [kernel.name for kernel in kernels]
        assert len(set(names)) == len(names) and "reference" in names
