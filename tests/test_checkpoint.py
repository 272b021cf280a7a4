"""Checkpoints: bit-exact, on any mesh, never half-loaded, one layer per chunk."""

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.errors import CheckpointError

CONFIG = {"name": "tiny", "model": {"num_layers": 4}}
DATA = {"next": 7, "seed": 0}


def make_state(key: jax.Array) -> dict:
    """A state shaped as in training: params, optax's nested tuples, typed keys, a step."""
    stack = jax.random.normal(key, (4, 8, 16))
    params = {
        "embed": {"table": jax.random.normal(key, (32, 8), jnp.bfloat16)},
        "periods": {"0": {"mlp": {"up": stack}}},
        "final_norm": {"scale": jnp.ones(8) / 3},
    }
    moments = jax.tree.map(jnp.square, params)
    return {
        "step": jnp.int32(7),
        "params": params,
        "opt_state": ((moments, jnp.zeros((0, 3))), jnp.int32(7)),
        "key": jax.random.split(key, 3),
    }


def abstract(state: dict, sharding: object = None) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def bits(leaf: jax.Array) -> np.ndarray:
    data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(data).view(np.uint8) if data.ndim else np.asarray(data)


def assert_same_bits(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(bits(x), bits(y), err_msg=str(path))


@pytest.fixture
def saved(tmp_path: Path, key: jax.Array) -> tuple[Path, dict]:
    state = make_state(key)
    keeper = Checkpointer(tmp_path / "run" / "checkpoints")
    keeper.save(7, state, DATA, CONFIG)
    keeper.close()
    return tmp_path / "run", state


def test_restore_is_bit_exact(saved: tuple[Path, dict]) -> None:
    folder, state = saved
    keeper = Checkpointer(folder / "checkpoints")
    restored = keeper.restore(abstract(state))
    keeper.close()
    assert_same_bits(state, restored.state)
    assert (restored.step, restored.data_state, restored.config) == (7, DATA, CONFIG)
    # The key is a key again, and draws what the first would have drawn.
    np.testing.assert_array_equal(
        jax.random.bits(restored.state["key"][1]), jax.random.bits(state["key"][1])
    )


def test_other_key_kinds_come_back(tmp_path: Path) -> None:
    state = {"key": jax.random.key(3, impl="rbg")}
    keeper = Checkpointer(tmp_path)
    keeper.save(1, state, None, {})
    restored = keeper.restore(abstract(state))
    keeper.close()
    assert restored.state["key"].dtype == state["key"].dtype
    assert_same_bits(state, restored.state)


def test_restores_on_another_mesh(tmp_path: Path, key: jax.Array) -> None:
    written_on = jax.make_mesh((8,), ("fsdp",))
    read_on = jax.make_mesh((2, 4), ("data", "tensor"))
    stack = jax.random.normal(key, (4, 16, 24))
    at_first = NamedSharding(written_on, PartitionSpec(None, "fsdp"))
    then = NamedSharding(read_on, PartitionSpec(None, ("data",), "tensor"))
    keeper = Checkpointer(tmp_path)
    keeper.save(1, {"periods": {"w": jax.device_put(stack, at_first)}}, None, {})
    target = {"periods": {"w": jax.ShapeDtypeStruct(stack.shape, stack.dtype, sharding=then)}}
    restored = keeper.restore(target).state["periods"]["w"]
    keeper.close()
    assert restored.sharding == then
    np.testing.assert_array_equal(restored, stack)


def test_sharded_stack_is_still_one_layer_per_chunk(tmp_path: Path, key: jax.Array) -> None:
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    stack = jax.random.normal(key, (4, 16, 24))
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    keeper = Checkpointer(tmp_path)
    keeper.save(1, {"params": {"periods": {"w": jax.device_put(stack, sharding)}}}, None, {})
    keeper.close()
    stored = StoredState(tmp_path)
    assert stored.chunk_shape("params/periods/w") == (1, 4, 24)
    np.testing.assert_array_equal(stored.read("params/periods/w", layer=2), stack[2])


def test_one_layer_is_one_chunk_and_reads_alone(saved: tuple[Path, dict]) -> None:
    folder, state = saved
    stored = StoredState(folder)
    name = "params/periods/0/mlp/up"
    assert stored.chunk_shape(name) == (1, 8, 16)
    assert stored.chunk_shape("params/embed/table") == (32, 8)
    for layer in range(4):
        expected = np.asarray(state["params"]["periods"]["0"]["mlp"]["up"][layer])
        np.testing.assert_array_equal(stored.read(name, layer), expected)
    table = stored.read("params/embed/table")
    assert table.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(table, np.asarray(state["params"]["embed"]["table"]))
    assert (stored.step, stored.config) == (7, CONFIG)


def test_saved_arrays_may_be_donated_at_once(tmp_path: Path) -> None:
    wipe = jax.jit(lambda t: t * 0 - 1, donate_argnums=0)
    keeper = Checkpointer(tmp_path, keep=9)
    for step in (1, 2, 3):
        array = jnp.full((4, 256, 256), step, jnp.float32)
        keeper.save(step, {"periods": array}, None, {})
        jax.block_until_ready(wipe(array))
    keeper.close()
    for step in (1, 2, 3):
        np.testing.assert_array_equal(StoredState(tmp_path, step).read("periods"), np.float32(step))


def test_keeps_the_newest(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path, every_steps=5, keep=2)
    assert [s for s in range(12) if keeper.is_due(s)] == [5, 10]
    for step in (5, 10, 12):
        keeper.save(step, {"w": jnp.full(3, step)}, step, {})
    keeper.save(12, {"w": jnp.full(3, 99)}, 99, {})  # there already: stays as it is
    keeper.wait()
    assert steps.all_steps(tmp_path) == [10, 12]
    assert keeper.latest_step() == 12
    target = {"w": jax.ShapeDtypeStruct((3,), jnp.int32)}
    assert keeper.restore(target).state["w"].tolist() == [12, 12, 12]
    assert keeper.restore(target, step=10).data_state == 10
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .* holds steps 10, 12"):
        keeper.restore(target, step=5)
    keeper.close()


def test_mismatch_lists_every_leaf(
    saved: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = saved
    target = abstract(state)
    up = target["params"]["periods"]["0"]["mlp"].pop("up")
    target["params"]["periods"]["0"]["mlp"]["upp"] = up
    target["params"]["embed"]["table"] = jax.ShapeDtypeStruct((64, 8), jnp.bfloat16)
    target["params"]["final_norm"]["scale"] = jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    keeper = Checkpointer(folder / "checkpoints")
    monkeypatch.setattr(keeper._manager, "restore", lambda *a, **k: pytest.fail("it began to load"))
    with pytest.raises(CheckpointError) as caught:
        keeper.restore(target)
    keeper.close()
    lines = str(caught.value).splitlines()
    assert "4 of 10 leaves differ" in lines[0] and str(folder) in lines[0]
    body = "\n".join(lines[1:])
    assert "params/embed/table: checkpoint bfloat16[32,8], this run bfloat16[64,8]" in body
    assert "params/final_norm/scale: checkpoint float32[8], this run bfloat16[8]" in body
    assert (
        "params/periods/0/mlp/upp: checkpoint has none, this run float32[4,8,16] "
        '(nearest name: "params/periods/0/mlp/up")' in body
    )
    assert "params/periods/0/mlp/up: checkpoint float32[4,8,16], this run has none" in body
    assert len(lines) == 5


def test_absent_is_one_line(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path / "checkpoints")
    assert keeper.latest_step() is None
    for attempt in (lambda: keeper.restore({}), lambda: StoredState(tmp_path)):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert "no checkpoint in" in str(caught.value) and str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    keeper.close()


# Without state/_METADATA Orbax restores all the same, so that pair is not among these.
DAMAGE = [
    (victim, how)
    for victim in ("state/manifest.ocdbt", "state/_METADATA", "leaves/metadata", "state/d")
    for how in ("gone", "cut", "garbage")
    if (victim, how) != ("state/_METADATA", "gone")
]


@pytest.mark.parametrize(("victim", "how"), DAMAGE)
def test_damage_is_one_line(saved: tuple[Path, dict], victim: str, how: str) -> None:
    folder, state = saved
    step_folder = folder / "checkpoints" / "7"
    for path in step_folder.glob(victim):
        files = [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]
        for file in files:
            if how == "gone":
                file.unlink()
            else:
                content = file.read_bytes()
                file.write_bytes(content[: len(content) // 2] if how == "cut" else b"\x00\xff" * 40)
    keeper = Checkpointer(folder / "checkpoints")
    with pytest.raises(CheckpointError) as caught:
        keeper.restore(abstract(state))
    keeper.close()
    assert "is damaged" in str(caught.value) and str(step_folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_interrupted_save_is_not_a_checkpoint(saved: tuple[Path, dict]) -> None:
    folder, _ = saved
    checkpoints = folder / "checkpoints"
    shutil.copytree(checkpoints / "7", checkpoints / "9.orbax-checkpoint-tmp")
    shutil.copytree(checkpoints / "7", checkpoints / "8")
    (checkpoints / "8" / "_CHECKPOINT_METADATA").unlink()
    assert steps.all_steps(checkpoints) == [7]


def test_failed_save_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot use"):
        Checkpointer(tmp_path / "file")


def test_nothing_is_written_to_the_terminal(
    tmp_path: Path, key: jax.Array, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("absl").setLevel(logging.DEBUG)
    state = make_state(key)
    keeper = Checkpointer(tmp_path)
    keeper.save(1, state, DATA, CONFIG)
    keeper.restore(abstract(state))
    keeper.close()
    assert capfd.readouterr() == ("", "")


def test_the_config_on_disk_is_plain_json(saved: tuple[Path, dict]) -> None:
    text = (saved[0] / "checkpoints" / "7" / "config" / "metadata").read_text()
    assert json.loads(text) == CONFIG
