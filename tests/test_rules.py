"""The table from logical axes to mesh axes, the mesh, and what is placed by them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P  # noqa: N817

from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import (
    batch_axes,
    fsdp_axes,
    make_mesh,
    platform,
    single_device_mesh,
)
from llmasos_jax.parallel.place import check_divisible, mesh_ways, shardings
from llmasos_jax.parallel.rules import Rules, serving_rules, training_rules


def mesh_of(data: int | None, fsdp: tuple[int, ...], tensor: int):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def test_mesh_axes_and_their_order():
    mesh = mesh_of(None, (2, 2), 2)
    assert dict(mesh.shape) == {"data": 1, "fsdp_0": 2, "fsdp_1": 2, "tensor": 2}
    assert fsdp_axes(mesh) == ("fsdp_0", "fsdp_1")
    assert batch_axes(mesh) == ("data", "fsdp_0", "fsdp_1")
    assert fsdp_axes(mesh_of(4, (2,), 1)) == ("fsdp",)
    assert platform(mesh) == "cpu"
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))
    assert single_device_mesh().size == 1


def test_mesh_takes_the_devices_that_are_left():
    assert mesh_of(None, (2,), 2).shape["data"] == 2
    assert make_mesh(MeshConfig(fsdp=(4,)), jax.devices()[:4]).shape["data"] == 1


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (MeshConfig(data=3), "mesh data=3 x fsdp=1 x tensor=1 is 3 devices, there are 8"),
        (MeshConfig(fsdp=(3, 5)), "fsdp=3x5"),
        (MeshConfig(tensor=16), "is 16 devices, there are 8"),
        (MeshConfig(data=1, fsdp=(2, 2)), "is 4 devices, there are 8; make the product 8"),
    ],
)
def test_mesh_that_does_not_use_each_device_once(cfg, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_mesh(cfg)


def test_training_rules_split_batch_weights_and_heads():
    rules = training_rules(mesh_of(2, (2,), 2))
    assert rules.spec("batch") == P(("data", "fsdp"))
    assert rules.spec("embed", "heads", None) == P(("fsdp",), "tensor", None)
    assert rules.spec("vocab", "embed") == P("tensor", ("fsdp",))
    two = training_rules(mesh_of(1, (2, 4), 1))
    assert two.spec(None, "embed", "ffn") == P(None, ("fsdp_0", "fsdp_1"), "tensor")


def test_serving_rules_keep_a_replica_whole_along_its_width():
    rules = serving_rules(mesh_of(2, (2,), 2))
    assert rules.spec("embed", "ffn") == P(None, "tensor")
    assert rules.spec("batch") == P(("data", "fsdp"))
    assert rules.kv_heads == "tensor"


@pytest.mark.parametrize("rules_of", [training_rules, serving_rules])
def test_key_heads_are_whole_where_tensor_is_a_multiple(rules_of):
    mesh = mesh_of(1, (2,), 4)
    placed = {num: rules_of(mesh, num).kv_heads for num in (1, 2, 3, 4, 8)}
    # Three are then refused: four devices do not cut them into equal parts.
    assert placed == {1: None, 2: None, 3: "tensor", 4: "tensor", 8: "tensor"}


def test_without_rules_everything_is_replicated():
    assert Rules().spec("batch", "embed", None) == P(None, None, None)


def test_unknown_axis_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match='no rule for logical axis "head"; did you mean "heads"'):
        Rules().spec("head")


def test_mesh_axis_is_spent_once():
    rules = Rules(embed=("fsdp", "tensor"), heads="tensor")
    with pytest.raises(ConfigError, match='mesh axis "tensor" is wanted twice') as error:
        rules.spec("embed", "heads", None)
    assert '"embed" and "heads"' in str(error.value) and "heads='tensor'" in str(error.value)


def test_shardings_follow_a_tree_of_axes():
    mesh = mesh_of(2, (2,), 2)
    axes = {"a": {"w": ("embed", "ffn")}, "b": (None,)}
    where = shardings(axes, mesh, training_rules(mesh))
    assert where["a"]["w"].shard_shape((8, 8)) == (4, 4)
    assert where["b"].shard_shape((8,)) == (8,)


def test_what_does_not_divide_is_named_with_a_remedy():
    mesh = mesh_of(None, (2,), 4)
    rules = training_rules(mesh)
    good = {"k": jax.ShapeDtypeStruct((16, 4, 8), jnp.float32)}
    bad = {"k": jax.ShapeDtypeStruct((16, 2, 8), jnp.float32)}
    axes = {"k": ("embed", "kv_heads", None)}
    check_divisible(good, axes, mesh, rules)
    with pytest.raises(ConfigError) as error:
        check_divisible(bad, axes, mesh, rules)
    assert str(error.value) == (
        "k: axis \"kv_heads\" has size 2, which mesh axis 'tensor' does not cut into 4 equal "
        "parts; make that mesh axis a divisor of 2, or change the model so that 2 becomes a "
        "multiple of 4"
    )
    assert mesh_ways(mesh, ("fsdp", "tensor")) == 8 and mesh_ways(mesh, None) == 1


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(1, (2, 4), 1), (2, (2,), 2)])
def test_gather_is_the_whole_and_its_transpose_a_shard_of_the_sum(data, fsdp, tensor):
    mesh = mesh_of(data, fsdp, tensor)
    manual = Manual(mesh, training_rules(mesh))
    axes = ("embed", "ffn")
    w = jnp.arange(16.0 * 4).reshape(16, 4)
    rows = jnp.arange(8.0).reshape(8, 1) + 1  # one factor per row of the batch

    def run(w, rows_b1):
        def loss(w):
            return jnp.sum(manual.gather(w, axes, jnp.float32)) * jnp.sum(rows_b1)

        value, grad = jax.value_and_grad(loss)(w)
        return manual.sum(value), manual.sum_gradient(grad, axes)

    specs = (manual.spec(*axes), manual.spec("batch"))
    mapped = manual.shard_map(run, specs, (P(), manual.spec(*axes)))
    w = jax.device_put(w, shardings({"w": axes}, mesh, manual.rules)["w"])
    value, grad = jax.jit(mapped)(w, rows)
    assert float(value) == float(w.sum()) * 36
    np.testing.assert_array_equal(grad, np.full((16, 4), 36.0))
    assert grad.sharding.is_equivalent_to(w.sharding, 2)


def test_rows_are_numbered_over_the_whole_batch():
    mesh = mesh_of(2, (2,), 2)
    manual = Manual(mesh, training_rules(mesh))
    number = lambda rows: manual.first_row(rows.shape[0]) + jnp.arange(rows.shape[0])
    mapped = manual.shard_map(number, manual.spec("batch"), manual.spec("batch"))
    assert manual.ways == 4
    np.testing.assert_array_equal(jax.jit(mapped)(jnp.zeros(12)), np.arange(12))
