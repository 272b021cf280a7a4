"""Meshes by name, on devices of any kind and number; slices of a pod."""

import dataclasses
import functools
import math
import re
import sys
import types
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.presets import TABLE, Preset, mesh_config, torus
from llmasos_jax.plan.hlo import read_program
from llmasos_jax.train.step import make_trainer


@dataclass(frozen=True)
class Chip:
    """What a mesh is made from: a TPU that is not here."""

    coords: tuple[int, ...]
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"


def chips(*box: int, slices: int = 1, cores: int = 1) -> list[Chip]:
    places = list(np.ndindex(*box))
    return [
        Chip(tuple(place), number, core)
        for number in range(slices)
        for place in places
        for core in range(cores)
    ]


def sizes(cfg: MeshConfig) -> dict[str, object]:
    names = ("data", "pipeline", "fsdp", "expert", "context", "tensor")
    default = {"data": 1, "fsdp": (1,)}
    found = {name: getattr(cfg, name) for name in names}
    return {name: size for name, size in found.items() if size != default.get(name, 1)}


@pytest.mark.parametrize(
    ("preset", "devices", "wanted"),
    [
        ("data", chips(16, 16), {"data": 256}),
        ("fsdp", chips(16, 16), {"fsdp": (16, 16)}),
        ("fsdp", chips(2, 4), {"fsdp": (4, 2)}),
        ("fsdp", chips(8, 8, 8), {"fsdp": (8, 8, 8)}),
        ("fsdp", chips(4, 4, 1), {"fsdp": (4, 4)}),
        ("fsdp", chips(2, 2, 1, cores=2), {"fsdp": (2, 2, 2)}),
        ("fsdp", range(8), {"fsdp": (8,)}),
        ("tp", chips(2, 2), {"tensor": 4}),
        ("fsdp_tp", chips(16, 16), {"fsdp": (16, 4), "tensor": 4}),
        ("fsdp_tp", range(2), {"tensor": 2}),
        ("fsdp_tp", range(6), {"fsdp": (3,), "tensor": 2}),
        ("fsdp_cp", chips(4, 4, 4), {"fsdp": (4, 4), "context": 4}),
        ("fsdp_ep", chips(16, 16), {"fsdp": (16, 2), "expert": 8}),
        ("fsdp_tp_ep", chips(4, 4, 4), {"fsdp": (2,), "tensor": 4, "expert": 8}),
        ("pp_fsdp", range(8), {"pipeline": 4, "fsdp": (2,)}),
        ("hsdp", chips(4, 4), {"fsdp": (4, 4)}),
        ("hsdp", chips(4, 4, slices=2), {"data": 2, "fsdp": (4, 4)}),
    ],
)
def test_which_axes_take_the_devices(preset, devices, wanted):
    assert sizes(mesh_config(MeshConfig(preset=preset), devices)) == wanted


def test_sizes_say_how_large_an_axis_is_at_most():
    tensor = lambda count: sizes(mesh_config(MeshConfig(preset="fsdp_tp", tensor=8), range(count)))
    assert tensor(32) == {"fsdp": (4,), "tensor": 8}
    assert tensor(12) == {"fsdp": (3,), "tensor": 4}
    replicas = mesh_config(MeshConfig(preset="hsdp", data=2), range(8))
    assert sizes(replicas) == {"data": 2, "fsdp": (4,)}


@pytest.mark.parametrize("name", TABLE)
def test_each_preset_uses_each_device_once(name):
    for count in (1, 2, 6, 8):
        mesh = make_mesh(MeshConfig(preset=name), jax.devices()[:count])
        assert sorted(d.id for d in mesh.devices.flat) == list(range(count))
    alone = make_mesh(MeshConfig(preset=name), jax.devices()[:1])
    assert dict(alone.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_a_preset_of_ones_own(monkeypatch):
    own = types.ModuleType("own_meshes")
    own.row = Preset("for tests", "data", {"tensor": 2})
    own.make = lambda cfg, devices: MeshConfig(fsdp=(len(devices) // 2, 2))
    own.wrong = 3
    monkeypatch.setitem(sys.modules, "own_meshes", own)
    named = lambda name: MeshConfig(preset=f"own_meshes:{name}")
    assert sizes(mesh_config(named("row"), range(8))) == {"data": 4, "tensor": 2}
    assert dict(make_mesh(named("make")).shape) == {
        "data": 1,
        "fsdp_0": 4,
        "fsdp_1": 2,
        "tensor": 1,
    }
    with pytest.raises(ConfigError, match="gives 3; it has to be a Preset, or a function"):
        mesh_config(named("wrong"), range(8))
    own.make = lambda cfg, devices: MeshConfig(context=8, context_exchange="ring")
    with pytest.raises(ConfigError, match="'ring', which is not for a preset to say; set mesh"):
        mesh_config(named("make"), range(8))
    asked = dataclasses.replace(named("make"), context_exchange="ring")
    assert mesh_config(asked, range(8)).context == 8


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"preset": "fdsp"}, 'mesh.preset="fdsp" is not known; did you mean "fsdp"'),
        ({"preset": "fsdp", "fsdp": (8,)}, "and mesh.fsdp=(8,) sets them; leave out one"),
        ({"preset": "fsdp", "tensor": 2}, 'mesh.tensor=2 is not for mesh.preset="fsdp" to use'),
        ({"preset": "fsdp_ep", "context": 2}, 'take one that has it: "fsdp_cp", "fsdp_tp_cp"'),
        ({"preset": "fsdp", "microbatches": 4}, 'of stages, and mesh.preset="fsdp" has none'),
        ({"slices": 3}, "slices have [3, 3, 2] devices; make the number of devices (8) a multiple"),
        ({"slices": 2, "fsdp": (8,)}, "are joined by mesh.data=1, which is not divisible"),
        ({"slices": 4, "fsdp": (2,), "tensor": 4, "slice_axis": "fsdp"}, "mesh.fsdp=2, which is"),
        ({"slices": 2, "slice_axis": "pipeline"}, "are joined by mesh.pipeline=1, which is not"),
        ({"fsdp": (16,)}, "is 16 devices, there are 8; make the product 8"),
        (
            {"fsdp": (3,)},
            "mesh fsdp=3 x tensor=1 is 3 devices, there are 8; make the product 8, or",
        ),
    ],
)
def test_what_does_not_fit_is_named(cfg, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_mesh(MeshConfig(**cfg))


def test_tpus_know_their_slices():
    with pytest.raises(ConfigError, match="mesh.slices=1, and these TPUs are of 2 slices"):
        make_mesh(MeshConfig(), chips(2, 2, slices=2))
    with pytest.raises(ConfigError, match=re.escape("mesh.slices=2 slices have [4, 3] devices")):
        make_mesh(MeshConfig(slices=2), chips(2, 2, slices=2)[:-1])


def test_torus_of_what_is_no_box():
    assert torus(chips(4, 4)[:-1]) == (15,)
    assert torus(range(5)) == (5,)
    assert torus(chips(1, 1, 1)) == (1,)


MIXED = [
    ({"slices": 2, "data": 2, "fsdp": (2,), "tensor": 2}, "data"),
    ({"slices": 2, "data": 2, "fsdp": (4,), "slice_axis": "fsdp"}, "fsdp"),
    ({"slices": 2, "fsdp": (4, 2), "slice_axis": "fsdp"}, "fsdp_0"),
    ({"slices": 2, "pipeline": 4, "expert": 2, "slice_axis": "pipeline"}, "pipeline"),
    ({"slices": 4, "preset": "hsdp"}, "data"),
    ({"slices": 2, "preset": "pp_fsdp_tp", "slice_axis": "pipeline"}, "pipeline"),
]


@pytest.mark.parametrize(("cfg", "joined"), MIXED)
def test_only_one_axis_leaves_a_slice(cfg, joined):
    mesh = make_mesh(MeshConfig(**cfg))
    number = np.vectorize(lambda device: device.id // (8 // cfg["slices"]))(mesh.devices)
    assert_within_slices(mesh, number, joined, cfg["slices"])


def assert_within_slices(mesh, number, joined, num_slices):
    for axis, name in enumerate(mesh.axis_names):
        lines = np.moveaxis(number, axis, 0).reshape(mesh.shape[name], -1)
        if name == joined:
            # The slowest part of it: slice after slice.
            wanted = np.repeat(np.arange(num_slices), mesh.shape[name] // num_slices)
            assert (lines == wanted[:, None]).all()
        else:
            assert (lines == lines[:1]).all(), name


@functools.cache
def two_slices():
    from jax.experimental import topologies

    found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2)
    return found.devices


@pytest.fixture
def compiler(monkeypatch):
    """The TPU compiler on a host without one."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # What is compiled for devices that are not here cannot be read back from the cache.
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "joined"),
    [
        ({"preset": "hsdp"}, "data"),
        ({"slices": 2, "data": 4, "fsdp": (4,), "tensor": 2}, "data"),
        ({"slices": 2, "fsdp": (8, 4), "slice_axis": "fsdp"}, "fsdp_0"),
        (
            {"slices": 2, "pipeline": 2, "fsdp": (4,), "expert": 4, "slice_axis": "pipeline"},
            "pipeline",
        ),
    ],
)
def test_axes_of_two_slices_of_tpus(compiler, cfg, joined):
    mesh = make_mesh(MeshConfig(**cfg), two_slices())
    assert math.prod(mesh.shape.values()) == 32
    number = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert_within_slices(mesh, number, joined, 2)


@pytest.mark.slow
def test_a_step_on_two_slices_compiles(compiler):
    mesh_cfg = MeshConfig(preset="hsdp")
    mesh = make_mesh(mesh_cfg, two_slices())
    cfg = Config(
        model=ModelConfig(1024, 256, 2, context_length=128, num_heads=2, ffn_dim=512),
        data=DataConfig(sequence_length=128),
        train=TrainConfig(batch_size=32, remat="full"),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh_cfg,
    )
    trainer = make_trainer(cfg, mesh)
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    program = read_program(lowered.compile().as_text())
    assert sum(program.kernels.values()) == 2 * 2 + 2 * 2  # the kernel is there
    # Between slices gradients are summed; weights are gathered inside of them.
    assert {c.ways for c in program.of("all-gather")} <= {4, 16}
