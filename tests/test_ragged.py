"""Pages on TPU: the layout that JAX's kernel reads, and the engine's programs by the TPU compiler.

The kernel itself runs on a TPU only; its own written-out definition stands in for it here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.engine.programs import Allowed, Programs, num_words
from llmasos_jax.engine.runner import page_specs
from llmasos_jax.generate.sampling import Sampling, sampling_rows
from llmasos_jax.models.definition import empty_pages, file_def
from llmasos_jax.nn.paged import PagedLayer, Places
from llmasos_jax.nn.ragged import RaggedLayer, ragged_fits
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.place import shardings
from llmasos_jax.parallel.rules import serving_rules
from llmasos_jax.plan.hlo import read_program

B, N, K, H, PAGE, PAGES = 3, 8, 2, 128, 16, 12
TABLE = np.array([[3, 5, 1], [2, 0, 0], [7, 8, 9]], np.int32)


@pytest.mark.parametrize(
    ("num_tokens", "options"),
    [(1, {}), (1, {"window": 20}), (16, {}), (16, {"window": 7, "soft_cap": 5.0})],
)
def test_the_kernels_layout_says_what_plain_pages_say(monkeypatch, num_tokens, options):
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as module
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

    def defined(*args, num_kv_pages_per_block, num_queries_per_block, **kwargs):
        assert 0 < num_kv_pages_per_block <= 3 and 0 < num_queries_per_block <= B * num_tokens
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return kernel.ref_ragged_paged_attention(*args, **kwargs)

    monkeypatch.setattr(module, "ragged_paged_attention", defined)
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((PAGES, PAGE, K, H), np.float32) for _ in range(2))
    plain = PagedLayer(jnp.asarray(k.transpose(0, 2, 3, 1)), jnp.asarray(v.transpose(0, 2, 1, 3)))
    ragged = RaggedLayer(jnp.asarray(np.stack([k, v], axis=3).reshape(PAGES, PAGE, 2 * K, H)))
    first = np.array([33, 9, 16] if num_tokens == 1 else [32, 0, 16], np.int32)
    places = Places(jnp.asarray(TABLE), jnp.asarray(first))
    new = [
        jnp.asarray(rng.standard_normal((B, num_tokens, heads, H), np.float32))
        for heads in (N, K, K)
    ]
    known = {"window": None, "soft_cap": None, **options, "scale": 0.1, "slopes": None}
    wanted, found = (
        layer.write(*new[1:], places).attend(new[0], places, runtime=Runtime(), **known)
        for layer in (plain, ragged)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_which_models_the_kernel_takes():
    tpu = Runtime(platform="tpu")
    fits = functools.partial(ragged_fits, runtime=tpu, dtype=jnp.bfloat16)
    llama = ModelConfig(512, 1024, 1, num_heads=8, num_kv_heads=8)
    assert fits(llama)
    assert not ragged_fits(llama, Runtime(), jnp.float32)  # a CPU
    assert not fits(ModelConfig(512, 512, 1, num_heads=8))  # heads of 64
    assert not fits(ModelConfig(512, 1024, 1, num_heads=8, position="alibi"))
    assert not fits(ModelConfig(512, 3 * 128, 1, num_heads=3))  # tiles of three rows
    assert isinstance(_layers(llama, Runtime())["prefix"]["0"], PagedLayer)
    assert isinstance(_layers(llama, tpu)["prefix"]["0"], RaggedLayer)


def _layers(cfg, runtime):
    make = functools.partial(empty_pages, file_def(cfg), 4, 128, jnp.bfloat16, runtime=runtime)
    return jax.eval_shape(make)


@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "num_kernels"), [(128, 2), (64, 0)])
def test_steps_compile_for_a_tpu_mesh(compiler, head_dim, num_kernels):
    """Tensor parallel; heads of 128 run in the kernel, others in plain products."""
    mesh = make_mesh(MeshConfig(data=2, tensor=2), compiler("v5e:2x2"))
    cfg = ModelConfig(
        512, 8 * head_dim, 2, num_heads=8, num_kv_heads=4, head_dim=head_dim, context_length=1024
    )
    definition, rules = file_def(cfg), serving_rules(mesh, cfg.kv_heads)
    runtime = Runtime(dtype=jnp.bfloat16, act_dtype=jnp.bfloat16, platform="tpu", mesh=mesh)
    programs = Programs(definition, runtime, 512, (2,), 4)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def there(tree, where):
        return jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where
        )

    def everywhere(tree):
        return there(tree, jax.tree.map(lambda _: whole, tree))

    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), definition.shapes
    )
    params = there(params, shardings(definition.axes, mesh, rules))
    layers = jax.eval_shape(
        functools.partial(empty_pages, definition, 64, 128, jnp.bfloat16, runtime=runtime)
    )
    places = jax.tree.map(
        functools.partial(jax.sharding.NamedSharding, mesh), page_specs(layers, rules.kv_heads)
    )
    layers = there(layers, places)
    size, table = 8, 8
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    options = sampling_rows([Sampling()] * size)
    rows = jax.eval_shape(functools.partial(programs.empty_rows, size), options)
    allowed = Allowed(
        jax.ShapeDtypeStruct((size, num_words(512)), jnp.uint32),
        jax.ShapeDtypeStruct((size,), jnp.bool_),
    )
    live = jax.ShapeDtypeStruct((size,), jnp.bool_)
    rest = everywhere((rows, ints(size, table), live, allowed, ints()))
    step = jax.jit(programs.step, donate_argnums=(1, 2), out_shardings=(places, whole, whole))
    compiled = step.lower(params, layers, *rest).compile()
    program = read_program(compiled.as_text())
    assert sum(program.kernels.values()) == num_kernels
    # Pages are written where they are: no second pool.
    pool = 2 * 2 * 64 * 128 * 4 * head_dim * 2 // 2
    sizes = compiled.memory_analysis()
    assert sizes.alias_size_in_bytes >= pool > sizes.temp_size_in_bytes
    read = jax.jit(programs.read, donate_argnums=1, out_shardings=(places, whole))
    chunk = everywhere((ints(1, 128), ints(1, table), ints(1), ints(1), ints()))
    program = read_program(read.lower(params, layers, *chunk).compile().as_text())
    assert sum(program.kernels.values()) == num_kernels
