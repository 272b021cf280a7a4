"""What `config.precision` promises: scaled losses, narrow weights and moments, rounded products."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import Record, small_config
from tolerances import SIMPLE

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import to_dict
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, OptimConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.errors import ConfigError, TrainingFailedError
from llmasos_jax.format.training import open_training
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.master import MasterState, next_params
from llmasos_jax.train.moments import Coded
from llmasos_jax.train.optim import TABLE
from llmasos_jax.train.run import run
from llmasos_jax.train.start import weights_of
from llmasos_jax.train.step import make_trainer

QUICK = {"xla_backend_optimization_level": 0}
B, T, V = 8, 16, 64
MODEL = ModelConfig(V, 32, 2, context_length=T, num_heads=2, ffn_dim=64, tie_embeddings=False)
ONE = MeshConfig(data=1)
EIGHT = MeshConfig(data=2, fsdp=(2,), tensor=2)


def trainer_for(mesh: MeshConfig = ONE, optim: str = "adamw", **precision: object):
    cfg = Config(
        model=MODEL,
        data=DataConfig(sequence_length=T),
        optim=OptimConfig(name=optim, warmup_steps=0, learning_rate=1e-2),
        train=TrainConfig(batch_size=B, steps=10),
        precision=PrecisionConfig(**precision),
        mesh=mesh,
    )
    num_devices = (mesh.data or 1) * int(np.prod(mesh.fsdp)) * mesh.tensor
    return make_trainer(cfg, make_mesh(mesh, jax.devices()[:num_devices]))


@functools.cache
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)
    ones = np.ones((B, T), np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, positions)


def compiled(trainer):
    step = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    return step.compile(compiler_options=QUICK)


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


def steps_of(trainer, num: int, step=None):
    """The states and metrics of the first steps."""
    step = step or compiled(trainer)
    state, states, metrics = trainer.init(jax.random.key(1)), [], []
    for _ in range(num):
        # Before copies, each a program on all devices: those wait for the step in threads that its
        # collectives need, and where there are few cores all of them may stand still.
        state, found = jax.block_until_ready(step(state, trainer.put(batch())))
        states.append(jax.device_get(copied(state)))
        metrics.append(jax.device_get(found))
    return states, metrics


@functools.cache
def narrow_on_eight():
    trainer = trainer_for(EIGHT, dtype="bfloat16", weights="bfloat16", moments="int8")
    return trainer, compiled(trainer)


# ---- float16 and its loss scale


@functools.cache
def float16_steps(mesh: MeshConfig):
    return steps_of(trainer_for(mesh, dtype="float16", loss_scale=2.0**30, loss_scale_steps=3), 20)


@pytest.mark.parametrize("mesh", [ONE, EIGHT])
def test_an_overflow_leaves_the_step_out_and_halves_the_scale(mesh):
    states, metrics = float16_steps(mesh)
    skipped = [int(m.extra["overflow"]) for m in metrics]
    assert skipped[0] == 1 and 2 < sum(skipped) < 15
    assert metrics[-1].extra["skipped_steps"] == sum(skipped)
    assert metrics[-1].loss < metrics[0].loss - 0.3
    for before, after, metric in zip(states, states[1:], metrics[1:], strict=False):
        same = jax.tree.map(
            np.array_equal, (before.params, before.opt_state), (after.params, after.opt_state)
        )
        if metric.extra["overflow"]:
            assert all(jax.tree.leaves(same))
            assert after.scale.value == before.scale.value / 2
        else:
            assert not all(jax.tree.leaves(same))
        assert after.step == before.step + 1


def test_the_scale_doubles_after_good_steps_and_the_rate_counts_updates():
    states, metrics = float16_steps(ONE)
    good = [not m.extra["overflow"] for m in metrics]
    values = [float(state.scale.value) for state in states]
    grown = [i for i in range(1, len(values)) if values[i] == 2 * values[i - 1]]
    assert grown and all(good[i - 2 : i + 1] == [True] * 3 for i in grown)
    # Until something was updated, the rate is the first one.
    first = good.index(True)
    rates = [float(m.learning_rate) for m in metrics]
    assert rates[: first + 1] == rates[:1] * (first + 1) and rates[first + 1] < rates[first]


def test_float16_gradients_are_float32s_where_they_fit():
    compute = lambda dtype: jax.jit(trainer_for(dtype=dtype).loss_and_grad, compiler_options=QUICK)
    params, key = trainer_for().init(jax.random.key(1)).params, jax.random.key(0)
    _, wanted = compute("float32")(params, batch(), key)
    _, grads = compute("float16")(params, batch(), key, jnp.float32(1024))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 5e-3 * np.linalg.norm(b)


def test_a_run_survives_a_planted_overflow(tmp_path):
    record = Record()
    cfg = small_config(tmp_path, steps=30, precision={"dtype": "float16", "loss_scale": 2.0**31})
    run(cfg, tmp_path / "run", [record], cache=tmp_path / "cache")
    last = record.values[30]
    assert last["skipped_steps"] >= 2 and last["overflow"] == 0
    assert last["loss"] < 4.5
    keeper = Checkpointer(tmp_path / "run" / "checkpoints")
    target = make_trainer(cfg, make_mesh(cfg.mesh)).abstract_state
    scale = keeper.restore(target).state.scale
    keeper.close()
    assert scale.skipped == last["skipped_steps"] and scale.value == last["loss_scale"]


def test_a_run_whose_scale_is_used_up_fails_in_one_line(tmp_path):
    cfg = small_config(
        tmp_path,
        steps=8,
        precision={"dtype": "float16", "loss_scale": 4.0},
        train={"init_std": 1e4},
    )
    with pytest.raises(TrainingFailedError, match="activations or weights are beyond 65504") as e:
        run(cfg, tmp_path / "run", cache=tmp_path / "cache")
    assert "\n" not in str(e.value)


# ---- bfloat16 weights


@pytest.mark.parametrize("mesh", [EIGHT, ONE])
def test_weights_are_the_master_rounded(mesh):
    if mesh is EIGHT:
        trainer, step = narrow_on_eight()
    else:
        trainer, step = trainer_for(ONE, "muon", dtype="bfloat16", weights="bfloat16"), None
    states, metrics = steps_of(trainer, 3, step)
    for state in states:
        assert isinstance(state.opt_state, MasterState)
        copies = jax.tree.map(
            lambda p, m: p if isinstance(m, optax.MaskedNode) else m,
            state.params,
            state.opt_state.master,
        )
        for param, copy in zip(*map(jax.tree.leaves, (state.params, copies)), strict=True):
            assert copy.dtype == np.float32
            np.testing.assert_array_equal(param, copy.astype(param.dtype))
    narrow = {p.dtype.name for p in jax.tree.leaves(states[-1].params["periods"]["0"]["mlp"])}
    assert narrow == {"bfloat16"}
    assert states[-1].params["final_norm"]["scale"].dtype == np.float32
    assert metrics[-1].loss < metrics[0].loss
    copy = states[-1].opt_state.master["head"]["w"]
    assert (copy.astype(jnp.bfloat16) != copy).mean() > 0.9  # what the weights cannot hold
    wanted = trainer.state_shardings
    assert (
        wanted.opt_state.master["periods"]["0"]["attn"]["q"]
        == wanted.params["periods"]["0"]["attn"]["q"]
    )


def test_without_a_master_small_updates_arrive_on_average():
    params = {"w": jnp.ones((100, 100), jnp.bfloat16)}
    update = {"w": jnp.full((100, 100), 2.0**-11)}
    for step in range(16):  # in all 2^-7, one step of a bfloat16 above 1
        params = next_params(params, update, (), jnp.int32(step))
    np.testing.assert_allclose(params["w"].astype(jnp.float32).mean(), 1 + 2**-7, atol=2e-4)


def test_narrow_weights_go_on_are_exported_and_started_from(tmp_path):
    trainer, step = narrow_on_eight()
    data = trainer.put(batch())
    state, _ = step(trainer.init(jax.random.key(1)), data)
    keeper = Checkpointer(tmp_path / "checkpoints")
    keeper.save(1, state, {}, to_dict(trainer.cfg))
    keeper.wait()
    params, table = jax.device_get((state.params, state.opt_state.master["embed"]["table"]))
    wanted, _ = step(state, data)
    found, _ = step(keeper.restore(trainer.abstract_state).state, data)
    keeper.close()
    same = lambda a, b: jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    assert all(same((wanted.params, wanted.opt_state), (found.params, found.opt_state)))
    assert not all(same(wanted.params, params))

    # The float32 copies are what leaves the run.
    tensors = open_training(tmp_path).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {"float32"}
    np.testing.assert_array_equal(tensors["embed.table"].read(), table)
    assert np.any(table != table.astype(jnp.bfloat16))
    other = trainer_for()
    train = dataclasses.replace(other.cfg.train, start_from=str(tmp_path))
    cfg = dataclasses.replace(other.cfg, train=train)
    begun = other.start(jax.random.key(0), weights_of(cfg, other.abstract_state.params))
    np.testing.assert_array_equal(begun.params["embed"]["table"], table)


# ---- moments, see test_moments.py too


@pytest.mark.parametrize(
    ("optim", "kind"),
    [("adamw", "bfloat16"), ("adamw", "int8"), ("lion", "int8"), ("sgd", "int8"), ("muon", "int8")],
)
def test_narrow_moments_train_alike(kind, optim):
    (_, wanted), (_, found) = (
        float32_moments(optim),
        steps_of(trainer_for(optim=optim, moments=kind), 8),
    )
    drop = wanted[0].loss - wanted[-1].loss
    assert drop > 0.01
    assert abs(found[-1].loss - wanted[-1].loss) < 0.15 * drop


@functools.cache
def float32_moments(optim):
    return steps_of(trainer_for(optim=optim), 8)


@pytest.mark.parametrize(("kind", "largest"), [("float32", 8.01), ("bfloat16", 4.1), ("int8", 2.7)])
def test_bytes_of_moments(kind, largest):
    state = trainer_for(moments=kind).abstract_state
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    num = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert largest - 0.6 < size(state.opt_state) / num <= largest


def test_codes_live_with_their_weights():
    state = trainer_for(EIGHT, moments="int8").abstract_state
    is_adam = lambda node: hasattr(node, "mu")
    (adam,) = filter(is_adam, jax.tree.leaves(state.opt_state, is_leaf=is_adam))
    part = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
    up = adam.nu["periods"]["0"]["mlp"]["up"]
    assert isinstance(up, Coded) and up.codes.dtype == np.uint8 and up.scale.shape == (2, 32, 1)
    assert part(up.codes) == (2, 16, 32) and part(up.scale) == (2, 16, 1)
    assert adam.mu["final_norm"]["scale"].dtype == np.float32


def test_optimizers_without_moments_are_refused():
    with pytest.raises(ConfigError, match='optim.name="adafactor" keeps no moment'):
        trainer_for(optim="adafactor", moments="int8")
    assert set(TABLE) == {"adamw", "lion", "sgd", "muon", "adafactor"}


def test_eight_bits_on_a_mesh_are_those_of_one_device():
    """Of the same gradients: the bits of a number say whether it is rounded up."""
    found = []
    for mesh in (ONE, EIGHT):
        trainer = trainer_for(mesh, moments="int8")
        state = trainer.init(jax.random.key(1))
        update = jax.jit(trainer.optimizer.update, compiler_options=QUICK)
        opt_state, rng = state.opt_state, np.random.default_rng(0)
        # Their norm is below `clip_norm`: a sum over devices would differ in its last bit.
        draw = lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(np.float32) * 1e-4
        for _ in range(3):
            grads = jax.tree.map(draw, state.params)
            grads = jax.device_put(grads, trainer.state_shardings.params)
            updates, opt_state = update(grads, opt_state, state.params)
        found.append(jax.device_get((updates, opt_state)))
    codes = [leaf for leaf in jax.tree.leaves(found[0]) if leaf.dtype in (np.int8, np.uint8)]
    assert len(codes) > 10 and all(len(np.unique(leaf)) > 10 for leaf in codes)
    for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(eight, one, rtol=SIMPLE, atol=1e-12)


# ---- products in eight bits, see test_quantized.py too


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rounded_products_train_on_a_mesh(kind):
    wanted = bfloat16_losses()
    one, found = (
        [(m.loss, m.grad_norm) for m in steps_of(trainer, 8)[1]]
        for trainer in (trainer_for(m, dtype="bfloat16", quantize=kind) for m in (ONE, EIGHT))
    )
    assert found[-1][0] < found[0][0] - 0.1
    np.testing.assert_allclose(found[-1][0], wanted[-1], rtol=0.02)
    # A sum over devices may differ in its last bit, and the product's factor then in its code.
    np.testing.assert_allclose(found[0], one[0], rtol=1e-3)
    np.testing.assert_allclose(found[0][0], one[0][0], rtol=SIMPLE)
    np.testing.assert_allclose([loss for loss, _ in found], [loss for loss, _ in one], rtol=2e-3)


@functools.cache
def bfloat16_losses():
    return [m.loss for m in steps_of(trainer_for(dtype="bfloat16"), 8)[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "topology", "codes"),
    [("int8", "v5e:2x2", ("s8", "s8")), ("fp8", "v6e:2x2", ("f8e4m3fn", "f8e5m2"))],
)
def test_a_tpu_multiplies_codes(kind, topology, codes, compiler):
    mesh = MeshConfig(fsdp=(2,), tensor=2)
    cfg = Config(
        model=MODEL.replace(
            vocab_size=512, embedding_dim=256, num_layers=1, context_length=128, ffn_dim=512
        ),
        data=DataConfig(sequence_length=128),
        train=TrainConfig(batch_size=4),
        precision=PrecisionConfig("bfloat16", quantize=kind, weights="bfloat16", moments="int8"),
        mesh=mesh,
    )
    trainer = make_trainer(cfg, make_mesh(mesh, compiler(topology)))
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    text = lowered.compile().as_text()
    dtypes = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", text))
    found = collections.Counter(
        tuple(sorted(dtypes[name] for name in pair))
        for pair in re.findall(r" convolution\((%[\w.-]+), (%[\w.-]+)\)", text)
    )
    # Seven products, forward and twice backward.
    forward, backward = (codes[0],) * 2, tuple(sorted(codes))
    wanted = collections.Counter({forward: 7}) + collections.Counter({backward: 14})
    assert {pair: found[pair] for pair in wanted} == dict(wanted)
    # The output layer's three stay as they are, and so do the turns of queries and keys, both ways.
    assert found.total() - sum(wanted.values()) == 3 + 4


def test_a_scale_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"precision.loss_scale=0.5 must be at least 1"):
        PrecisionConfig("float16", loss_scale=0.5)


def test_no_copy_of_float32_weights_to_leave_out():
    with pytest.raises(ConfigError, match=r"precision.master=False is of bfloat16 weights"):
        PrecisionConfig(master=False)
