"""Manifests: sums that do not hang on the sharding, damage that is named, the step before taken."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from old_checkpoint import without_manifest
from small_run import small_config

from llmasos_jax.checkpoint import manifest, steps
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.checkpoint.sums import (
    added,
    own_pieces,
    sum_of_array,
    sum_of_piece,
    sums_of_pieces,
)
from llmasos_jax.config.build import load_config
from llmasos_jax.errors import CheckpointError, ConfigError, DamagedCheckpointError
from llmasos_jax.train.run import run
from llmasos_jax.train.workdir import lock, newest_step

TARGET = {"w": jax.ShapeDtypeStruct((4, 6), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}


def state(step: int) -> dict:
    return {"w": jnp.arange(24.0).reshape(4, 6) + step, "n": jnp.int32(step)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    keeper = Checkpointer(folder)
    for step in (3, 5, 7):
        keeper.save(step, state(step), {"next": step}, {"name": "tiny"})
    keeper.close()
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "checkpoints")


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def largest(step_folder: Path) -> Path:
    entries = manifest.read(step_folder).files
    return step_folder / max(entries, key=lambda name: entries[name].num_bytes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int8", "uint32"])
@pytest.mark.parametrize(
    "spec",
    [(), ("a",), (None, "b"), ("a", None, "b"), (None, None, "b"), (("a", "b"),), (None, ("b",))],
)
def test_a_sum_does_not_hang_on_the_sharding(dtype: str, spec: tuple) -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    whole = np.random.default_rng(0).integers(0, 99, (8, 4, 8)).astype(jnp.dtype(dtype))
    lies = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*spec)))
    assert sums_of_pieces(own_pieces({"w": lies})) == {"w": sum_of_array(whole)}


def test_a_sum_tells_a_bit_and_a_place() -> None:
    whole = np.arange(70_000, dtype=np.float32).reshape(7, 10_000)
    of_rows = [sum_of_piece(whole.shape, (row, 0), whole[row : row + 1]) for row in range(7)]
    assert added([{"w": value} for value in of_rows]) == {"w": sum_of_array(whole)}
    swapped = whole.copy()
    swapped[0, 1], swapped[6, 9_999] = whole[6, 9_999], whole[0, 1]
    changed = whole.copy()
    changed.view(np.uint32)[3, 5_000] ^= 1
    assert len({sum_of_array(each) for each in (whole, swapped, changed)}) == 3
    assert sum_of_array(np.float32(0.0)) != sum_of_array(np.float32(-0.0))


def test_a_step_has_the_hash_of_each_file_and_the_sum_of_each_leaf(folder: Path) -> None:
    found = manifest.read(folder / "7")
    assert found.step == 7 and set(found.versions) >= {"llmasos", "jax", "orbax-checkpoint"}
    assert {*found.files, "manifest/manifest.json"} == {*manifest.list_files(folder / "7")}
    assert {"data/metadata", "config/metadata", "leaves/metadata"} < set(found.files)
    assert found.sums == {name: sum_of_array(np.asarray(leaf)) for name, leaf in state(7).items()}
    assert str(found.leaves["w"]) == "float32[4,6]"
    assert not [*(folder / "7" / "manifest").glob("sums*")]


def bit(step_folder: Path) -> str:
    flip(largest(step_folder))
    return "has changed since it was written"


def cut(step_folder: Path) -> str:
    path = largest(step_folder)
    path.write_bytes(path.read_bytes()[:-1])
    return "were written"


def gone(step_folder: Path) -> str:
    largest(step_folder).unlink()
    return "is missing"


def config(step_folder: Path) -> str:
    path = step_folder / "config" / "metadata"
    path.write_text(path.read_text().replace("tiny", "tinz"))
    return "config/metadata has changed"


def list_(step_folder: Path) -> str:
    flip(step_folder / "manifest" / "manifest.json", 40)
    return "manifest/manifest.json"


def no_list(step_folder: Path) -> str:
    (step_folder / "manifest" / "manifest.json").unlink()
    return "manifest/manifest.json is missing"


def no_manifest(step_folder: Path) -> str:
    shutil.rmtree(step_folder / "manifest")
    return "manifest/ is missing"


def no_mark_either(step_folder: Path) -> str:
    shutil.rmtree(step_folder / "manifest")
    (step_folder / "_CHECKPOINT_METADATA").write_text("{}")
    return "it has no manifest/, and _CHECKPOINT_METADATA is unreadable"


def of_another_step(step_folder: Path) -> str:
    shutil.rmtree(step_folder)
    shutil.copytree(step_folder.with_name("5"), step_folder)
    return "manifest/manifest.json is that of step 5"


def not_whole(step_folder: Path) -> str:
    (step_folder / "_CHECKPOINT_METADATA").unlink()
    return "it lacks files that every step has"


DAMAGE = [bit, cut, gone, config, list_, no_list, not_whole]
DAMAGE += [no_manifest, no_mark_either, of_another_step]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_step_is_named_and_the_one_before_taken(
    folder: Path, capsys: pytest.CaptureFixture[str], damage
) -> None:
    what = damage(folder / "7")
    keeper = Checkpointer(folder)
    restored = keeper.restore(TARGET)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'warning: checkpoint "{folder / "7"}" is damaged (') and what in line
    assert "it is now called 7.damaged" in line
    assert (restored.step, restored.data_state) == (5, {"next": 5})
    np.testing.assert_array_equal(restored.state["w"], state(5)["w"])
    # Nothing takes it for a step, and the step is written again when the run comes there.
    assert keeper.latest_step() == 5
    keeper.save(7, state(70), None, {})
    keeper.close()
    assert (folder / "7.damaged").is_dir()
    keeper = Checkpointer(folder)
    assert int(keeper.restore(TARGET).state["n"]) == 70
    keeper.close()
    assert capsys.readouterr().err == ""


def test_the_newest_sound_step_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bit(folder / "7"), cut(folder / "5")
    (folder / "5.damaged").mkdir()
    keeper = Checkpointer(folder)
    assert keeper.restore(TARGET).step == 3
    keeper.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("it is now called ")[1] for line in lines] == [
        "7.damaged; going on from step 3",
        "5.damaged-2; going on from step 3",
    ]


def test_a_broken_step_is_saved_anew_when_the_run_comes_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bit(folder / "7"), not_whole(folder / "5")
    keeper = Checkpointer(folder)
    assert keeper.restore(TARGET).step == 3
    assert "5.damaged" in capsys.readouterr().err
    for step in (5, 7):
        keeper.save(step, state(step * 10), None, {})
    keeper.close()
    for step in (5, 7):
        keeper = Checkpointer(folder)
        assert int(keeper.restore(TARGET, step).state["n"]) == step * 10
        keeper.close()


def test_a_file_that_may_not_be_read_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    keeper = Checkpointer(folder)
    monkeypatch.setattr(manifest, "hash_file", refused)
    with pytest.raises(CheckpointError, match=r"cannot read .* \(Permission denied\); the"):
        keeper.restore(TARGET)
    keeper.close()
    assert steps.all_steps(folder) == [3, 5, 7]


def test_a_mark_that_may_not_be_read_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    shutil.rmtree(folder / "7" / "manifest")
    monkeypatch.setattr(steps, "had_manifest", refused)
    with pytest.raises(CheckpointError, match=r"METADATA\" \(Permission denied\)") as caught:
        manifest.read(folder / "7")
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_links_are_steps_by_their_own_names(folder: Path, tmp_path: Path) -> None:
    away = (folder / "7").rename(tmp_path / "archived")
    (folder / "7").symlink_to(away)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / steps.FOLDER).symlink_to(folder)
    found = steps.find_step(tmp_path / "run")
    assert steps.training_folder(found) == tmp_path / "run"
    keeper = Checkpointer(tmp_path / "run" / steps.FOLDER)
    assert keeper.restore(TARGET).step == 7
    bit(folder / "7")
    assert keeper.restore(TARGET).step == 5
    # The link has another name now; what is elsewhere stays as it was.
    keeper.save(7, state(70), None, {})
    keeper.close()
    assert away.is_dir() and (folder / "7.damaged").is_symlink()
    assert not (folder / "7").is_symlink()


def test_processes_come_to_the_same_verdict(folder: Path) -> None:
    step = folder / "7"
    assert manifest.require_sound(step, lambda own: [own, [[], None]]) == manifest.read(step)
    with pytest.raises(DamagedCheckpointError, match=r"\(x is missing, and 1 more\)"):
        manifest.require_sound(step, lambda own: [own, [["x is missing", "y"], None]], (0, 2))
    with pytest.raises(CheckpointError, match="^cannot read x$") as caught:
        manifest.require_sound(step, lambda own: [[["y"], None], [[], "cannot read x"]], (0, 2))
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_name_with_zeros_before_it_is_no_step(folder: Path) -> None:
    (folder / "7").rename(folder / "007")
    assert steps.all_steps(folder) == [3, 5]
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        steps.find_step(folder, 7)


def test_a_run_that_was_done_and_is_damaged_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = small_config(tmp_path, steps=4, checkpoint={"every_steps": 2})
    done = run(short, tmp_path / "run")
    assert run(short, tmp_path / "run") == done
    assert "has done its 4 steps" in capsys.readouterr().err
    bit(tmp_path / "run" / "checkpoints" / "4")
    again = run(short, tmp_path / "run")
    assert "is now called 4.damaged; going on from step 2" in capsys.readouterr().err
    assert (again.loss, again.heldout_loss) == (done.loss, done.heldout_loss)
    manifest.require_sound(tmp_path / "run" / "checkpoints" / "4")


def test_all_damaged_is_one_error(folder: Path) -> None:
    for step in (3, 5, 7):
        bit(folder / str(step))
    keeper = Checkpointer(folder)
    with pytest.raises(CheckpointError, match=r"all 3 checkpoints in .* are damaged; put a copy"):
        keeper.restore(TARGET)
    keeper.close()
    assert steps.all_steps(folder) == [3, 5, 7]


def test_a_step_that_was_asked_for_is_never_replaced(folder: Path) -> None:
    bit(folder / "7")
    keeper = Checkpointer(folder)
    with pytest.raises(DamagedCheckpointError, match="has changed since it was written"):
        keeper.restore(TARGET, step=7)
    assert keeper.restore(TARGET, step=5).step == 5
    keeper.close()
    assert steps.all_steps(folder) == [3, 5, 7]


def test_another_model_is_no_damage(folder: Path) -> None:
    keeper = Checkpointer(folder)
    with pytest.raises(CheckpointError, match="does not fit this run") as caught:
        keeper.restore({"w": TARGET["w"]})
    keeper.close()
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert steps.all_steps(folder) == [3, 5, 7]


def test_numbers_that_are_read_wrong_are_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Checkpointer(folder)
    read = keeper._manager.restore

    def wrong(step, args):
        found = read(step, args=args)
        found["state"]["w"] = found["state"]["w"].at[2, 3].add(1)
        return found

    monkeypatch.setattr(keeper._manager, "restore", wrong)
    with pytest.raises(DamagedCheckpointError, match=r"leaf w has the sum \w{16}, and \w{16} was"):
        keeper.restore(TARGET, step=7)
    keeper.close()


def test_a_checkpoint_of_before_there_were_hashes_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_manifest(folder / "7")
    keeper = Checkpointer(folder)
    assert keeper.restore(TARGET).step == 7
    keeper.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: checkpoint") and "before there were hashes" in line


def test_a_manifest_of_a_later_format_is_refused_by_name(folder: Path) -> None:
    path = folder / "7" / "manifest" / "manifest.json"
    body = json.loads(path.read_text()) | {"format": 2}
    body.pop("sha256")
    path.write_text(json.dumps(body | {"sha256": manifest._digest(body)}))
    with pytest.raises(CheckpointError, match="has a manifest of format 2"):
        manifest.read(folder / "7")


def test_a_kill_before_the_manifest_leaves_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    keeper = Checkpointer(tmp_path)
    keeper.save(3, state(3), None, {})
    keeper.wait()
    monkeypatch.setattr(manifest, "write", killed)
    keeper.save(5, state(5), None, {})
    with pytest.raises(BaseException):  # noqa: B017
        keeper.close()
    assert steps.all_steps(tmp_path) == [3]
    assert not (tmp_path / "5").exists()


def test_a_second_run_is_refused_by_name(tmp_path: Path) -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        lock(tmp_path, first)
        name = rf"process {os.getpid()} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        with pytest.raises(ConfigError, match=rf"another process trains in \S+ \({name}\)"):
            lock(tmp_path, second)
    # What a killed run leaves names it and holds nothing.
    (tmp_path / "running.json").write_text('{"pid": 1, "host": "x", "since": "long ago"}')
    with contextlib.ExitStack() as third:
        lock(tmp_path, third)
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "running.json").exists()


def test_a_manifest_that_is_a_list_is_damage(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "manifest.json").write_text("[]")
    with pytest.raises(DamagedCheckpointError):
        manifest.read(tmp_path)


def test_a_run_all_of_whose_steps_lack_files_does_not_begin_anew(tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoints" / "3"
    keeper = Checkpointer(step.parent)
    keeper.save(3, {"w": jnp.arange(3.0)}, {"next": 3}, {"name": "tiny"})
    keeper.close()
    (step / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(CheckpointError, match="all 1 checkpoints .* are damaged"):
        newest_step(tmp_path / "run", load_config("tiny"))
    assert step.is_dir()
