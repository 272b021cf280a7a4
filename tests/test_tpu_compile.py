"""The TPU side, on a machine without one: the compiler's program, and the attention kernel's steps.

The compiler is `libtpu`, which the extra `tpu` brings.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.fences import gated
from llmasos_jax.nn.kernels import dot_product, reference
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.rope import rotate, rotate_by_product, rotations
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.splash import block_sizes, splash_attention, splash_fits
from llmasos_jax.parallel.mesh import make_mesh, platform
from llmasos_jax.parallel.place import shardings
from llmasos_jax.parallel.rules import serving_rules
from llmasos_jax.plan.hlo import read_program
from llmasos_jax.train.step import make_trainer

B, T, N, K = 2, 256, 4, 2


def visibility(**options: object) -> Visibility:
    """Documents that begin anywhere, and padding at the end."""
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    segments[:, -9:] = 0
    index = jnp.arange(T, dtype=jnp.int32)[None]
    return Visibility(index, index, jnp.asarray(segments), jnp.asarray(segments), **options)


@pytest.mark.parametrize(
    ("head_width", "soft_cap", "options"),
    [
        (128, None, {}),
        (64, 20.0, {}),
        (64, None, {"window": 100}),
        (64, 20.0, {"window": 100, "causal": False}),
        (128, None, {"causal": False}),
    ],
)
def test_splash_equals_the_reference(head_width, soft_cap, options):
    rng = np.random.default_rng(1)
    visible = visibility(**options)
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=(B, T, heads, head_width)), jnp.float32)
        for heads in (N, K, K, N)
    )
    settings = {"scale": 0.1, "soft_cap": soft_cap}

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(attend, *qkv):
        out, pull = jax.vjp(lambda *xs: attend(*xs, visible, **settings), *qkv)
        return out, *pull(cotangent)

    found = value_and_gradients(functools.partial(splash_attention, interpret=True), q, k, v)
    wanted = value_and_gradients(reference, q, k, v)
    for a, b in zip(found, wanted, strict=True):
        assert jnp.linalg.norm(a - b) <= PARITY * jnp.linalg.norm(b)


def test_sizes_of_blocks():
    sizes = block_sizes(2048, KernelsConfig(block_kv=1024, block_q_backward=256))
    assert (sizes.block_q, sizes.block_kv, sizes.block_kv_compute) == (512, 1024, 512)
    assert (sizes.block_q_dkv, sizes.block_q_dq, sizes.block_kv_dq) == (256, 256, 512)
    message = r"kernels.block_q=512 does not divide a sequence of 640 tokens; take one of 128, 640"
    with pytest.raises(ConfigError, match=message):
        block_sizes(640, KernelsConfig(block_q=512))


def test_rope_by_product_is_rope():
    rng = np.random.default_rng(2)
    cfg = ModelConfig(8, 64, 1, num_heads=2, rope_fraction=0.75)
    rotation = rotations(cfg, jnp.asarray(rng.integers(0, 5000, (B, 8))))["global"]
    assert rotation.sin.shape[-1] == 12  # of 16 pairs: the rest of a head stays
    x, cotangent = (jnp.asarray(rng.normal(size=(B, 8, 2, 32)), jnp.bfloat16) for _ in range(2))
    found, pull = jax.vjp(lambda x: rotate_by_product(x, rotation), x)
    wanted, pull_wanted = jax.vjp(lambda x: rotate(x.astype(jnp.float32), rotation), x)
    np.testing.assert_array_equal(found, wanted.astype(jnp.bfloat16))
    back = pull_wanted(cotangent.astype(jnp.float32))[0]
    np.testing.assert_allclose(pull(cotangent)[0], back, rtol=2**-7, atol=2**-7)


def test_gated_product_has_its_gradients():
    rng = np.random.default_rng(3)
    pair = tuple(jnp.asarray(rng.normal(size=(4, 8)), jnp.float32) for _ in range(2))
    for act in (jax.nn.silu, jax.nn.gelu):
        wanted = jax.grad(lambda g, u, act=act: jnp.sum(jnp.sin(act(g) * u)), (0, 1))(*pair)
        found = jax.grad(lambda g, u, act=act: jnp.sum(jnp.sin(gated(act, g, u))), (0, 1))(*pair)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=PARITY, atol=PARITY)


def test_which_shapes_the_kernel_takes():
    assert splash_fits((B, 384, N, 64), (B, 384, K, 64), None)
    assert not splash_fits((B, 100, N, 64), (B, 100, K, 64), None)  # no whole block
    assert not splash_fits((B, 128, N, 64), (B, 256, K, 64), None)  # a cache
    assert not splash_fits((B, 128, N, 64), (B, 128, K, 64), np.ones(N, np.float32))  # ALiBi


def test_the_devices_choose_the_kernel_not_the_host():
    x = jnp.ones((1, 128, 1, 64))
    index = jnp.arange(128, dtype=jnp.int32)[None]
    call = lambda platform: jax.make_jaxpr(
        lambda x: dot_product(
            x, x, x, Visibility(index, index, None, None), scale=1.0, runtime=Runtime(**platform)
        )
    )(x)
    assert jax.default_backend() == "cpu"
    assert "pallas_call" in str(call({"platform": "tpu"}))
    assert "pallas_call" not in str(call({"platform": "cpu"}))


@functools.cache
def pod_program(chips):
    """The step of a small decoder compiled for 16 chips: FSDP 4 x 2, tensor 2."""
    mesh_cfg = MeshConfig(fsdp=(4, 2), tensor=2)
    mesh = make_mesh(mesh_cfg, chips("v5e:4x4"))
    model = ModelConfig(
        4096,
        1024,
        2,
        context_length=512,
        num_heads=8,
        num_kv_heads=4,
        ffn_dim=2048,
        qk_norm="head",
        tie_embeddings=False,
    )
    cfg = Config(
        model=model,
        data=DataConfig(sequence_length=512),
        train=TrainConfig(batch_size=16, remat="full"),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh_cfg,
    )
    trainer = make_trainer(cfg, mesh)
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    return mesh, read_program(lowered.compile().as_text())


@pytest.fixture
def pod(compiler):
    return pod_program(compiler)


@pytest.mark.slow
def test_mesh_axes_lie_along_the_torus(pod):
    mesh = pod[0]
    assert platform(mesh) == "tpu"
    places = np.vectorize(lambda d: d.coords[0] + 10 * d.coords[1])(mesh.devices)[0]
    steps = {axis: np.unique(np.diff(places, axis=axis)) for axis in range(3)}
    # Each axis of the mesh moves along one axis of the torus.
    assert {axis: step.size for axis, step in steps.items()} == {0: 1, 1: 1, 2: 1}
    assert steps[0] == 10 and steps[2] == 1


@pytest.mark.slow
def test_pod_step_runs_the_kernel(pod):
    kernels = pod[1].kernels
    forward = sum(runs for name, runs in kernels.items() if "fwd" in name)
    backward = {name: runs for name, runs in kernels.items() if "fwd" not in name}
    assert forward == 4  # 2 layers, and again when the backward pass recomputes them
    assert sum(backward.values()) == 4 and all("splash" in name for name in kernels)


@pytest.mark.slow
def test_pod_gradients_come_back_by_reduce_scatter(pod):
    program = pod[1]
    layer = 1024 * (8 + 4 + 4 + 8) * 128 + 3 * 1024 * 2048
    wanted = 2 * (2 * layer + 2 * 4096 * 1024) // 2  # bfloat16, half of it by `tensor`
    scattered = sum(c.runs * c.num_bytes for c in program.of("reduce-scatter") if c.ways == 4)
    np.testing.assert_allclose(scattered, wanted, rtol=0.15)
    gathered = sum(c.runs * c.num_bytes for c in program.of("all-gather") if c.ways == 4)
    again = 2 * 2 * layer // 2  # layers are gathered once more for the backward pass
    np.testing.assert_allclose(gathered, wanted + again, rtol=0.02)


@pytest.mark.slow
def test_pod_sums_no_whole_gradient(pod):
    program = pod[1]
    smallest_weight = 2 * 1024 * 4 * 128 // 2
    for collective in program.of("all-reduce"):
        if collective.ways > 2:  # over `tensor` it is activations
            assert collective.num_bytes < smallest_weight / 2, collective
    assert program.endless == ()


@pytest.mark.slow
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_kernel_outside_the_training_step(compiler, num_kv_heads):
    """A loaded model on several chips: nothing is manual there but the kernel."""
    cfg = MeshConfig(data=2, tensor=2)
    mesh = make_mesh(cfg, compiler("v5e:2x2"))
    model = ModelConfig(512, 256, 1, 128, num_heads=2, num_kv_heads=num_kv_heads)
    definition = file_def(model)
    runtime = Runtime(dtype=jnp.bfloat16, act_dtype=jnp.bfloat16, platform="tpu", mesh=mesh)
    params = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=where),
        definition.shapes,
        shardings(definition.axes, mesh, serving_rules(mesh, num_kv_heads)),
    )

    def logits(params, tokens):
        model = definition.bind(params)
        return model.logits(model.hidden(tokens, runtime=runtime).x_btd, runtime)

    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    program = read_program(jax.jit(logits).lower(params, tokens).compile().as_text())
    assert list(program.kernels.values()) == [1]


@pytest.mark.slow
def test_experts_multiply_their_own_rows_alone(compiler):
    """No array is as large as all rows for all experts, forward or backward; `tensor` cuts F."""
    mesh_cfg = MeshConfig(fsdp=(2,), tensor=2)
    experts = Experts(8, 2, 1024, (0,), shared_ffn_dim=512)
    cfg = Config(
        model=ModelConfig(512, 256, 3, num_heads=2, ffn_dim=512, experts=experts),
        data=DataConfig(sequence_length=512),
        train=TrainConfig(batch_size=4, remat="full"),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh_cfg,
    )
    trainer = make_trainer(cfg, make_mesh(mesh_cfg, compiler("v5e:2x2")))
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    text = lowered.compile().as_text()
    products = {n: runs for n, runs in read_program(text).kernels.items() if "ragged" in n}
    # gate, up, down of two layers: forward, recomputed, and the rows' gradients.
    assert products["ragged-dot-none"] == 2 * 3 * 3
    rows = 2 * 512 * 2  # a device's sequences x positions x choices
    sizes = [math.prod(map(int, m.split(","))) for m in re.findall(r"\[8,([\d,]+)\]", text)]
    assert sizes and max(sizes) <= 256 * 1024 < rows * 256
    assert "bf16[8,256,512]" in text and "bf16[8,256,1024]" not in text
