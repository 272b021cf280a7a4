"""`llmasos doctor` and `llmasos diff`, on checkpoints and models."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from old_checkpoint import without_manifest

from llmasos_jax.checkpoint.doctor import examine, sum_of_stored
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.checkpoint.sums import sum_of_array
from llmasos_jax.cli import main as cli


def state(step: int) -> dict:
    stack = jnp.arange(24.0).reshape(4, 6).astype(jnp.bfloat16)
    key = jax.random.key(1)
    return {"periods": {"w": stack}, "b": jnp.zeros(3) + step, "key": key, "e": jnp.zeros((0, 2))}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "run"
    keeper = Checkpointer(folder / "checkpoints")
    for step in (3, 5):
        keeper.save(step, state(step), None, {"name": "tiny"})
    keeper.close()
    return folder


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict]:
    status = cli.main([*map(str, words), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_sound_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = answer(capsys, "doctor", run)
    assert (status, found["is_sound"], found["goes_on_from"], found["others"]) == (0, True, 5, [])
    first = found["steps"][0]
    assert (first["step"], first["num_leaves"], first["num_numbers"]) == (3, 4, 28)
    assert first["has_hashes"] and first["wrong"] == [] and first["versions"]["jax"]
    size = sum(p.stat().st_size for p in (run / "checkpoints/3").rglob("*") if p.is_file())
    assert first["num_bytes"] == size
    assert cli.main(["doctor", str(run / "checkpoints" / "3")]) == 0
    assert "step 3" in capsys.readouterr().out


def test_damage_is_listed_and_nothing_is_changed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints"
    (folder / "5" / "data" / "metadata").write_text("{}")
    (folder / "5" / "config" / "metadata").unlink()
    (folder / "7").mkdir()
    (folder / "9.damaged").mkdir()
    assert cli.main(["doctor", str(run)]) == 1
    text = capsys.readouterr().out
    assert "data/metadata has 2 bytes, and 4 were written" in text
    assert "config/metadata is missing" in text
    assert "step 7" in text and "it lacks files that every step has" in text
    assert "9.damaged  is no step: put aside as damaged" in text
    assert "a run goes on from step 3" in text
    assert (folder / "7").is_dir()
    assert cli.main(["doctor", str(folder / "7")]) == 2  # an empty folder is nobody's


def test_a_step_without_hashes_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_manifest(run / "checkpoints" / "5")
    assert cli.main(["doctor", str(run)]) == 0
    assert "it was written before there were hashes" in capsys.readouterr().out
    victim = max((run / "checkpoints/5/state").rglob("d/*"), key=lambda p: p.stat().st_size)
    victim.unlink()
    assert not examine(run).is_sound


def test_a_sum_layer_by_layer_is_the_sum(run: Path) -> None:
    stored = StoredState(run)
    for name in stored.leaves:
        assert sum_of_stored(stored, name) == sum_of_array(stored.read(name)), name


def test_nothing_to_examine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "no checkpoint in" in capsys.readouterr().err


def test_what_differs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = state(3)
    other["periods"]["w"] = other["periods"]["w"].at[2, 1].add(2)
    other["b"] = other["b"].astype(jnp.float16).at[0].add(0.5)
    other["f"] = other.pop("e")
    keeper = Checkpointer(tmp_path / "other")
    keeper.save(3, other, None, {})
    keeper.close()
    first = run / "checkpoints" / "3"
    status, found = answer(capsys, "diff", first, first)
    assert (status, found["same"], found["is_same"]) == (0, 4, True)
    status, found = answer(capsys, "diff", first, tmp_path / "other")
    assert (status, found["same"], found["is_same"]) == (1, 1, False)
    assert found["only_a"] == {"e": "float32[0,2]"} and found["only_b"] == {"f": "float32[0,2]"}
    by_name = {leaf["name"]: leaf for leaf in found["different"]}
    assert by_name["periods/w"] == {
        "name": "periods/w",
        "a": "bfloat16[4,6]",
        "b": "bfloat16[4,6]",
        "max_abs": 2.0,
        "count": 1,
        "total": 24,
    }
    assert (by_name["b"]["b"], by_name["b"]["max_abs"]) == ("float16[3]", 0.5)
    assert cli.main(["diff", str(first), str(tmp_path / "other")]) == 1
    text = capsys.readouterr().out
    assert "periods/w: bfloat16[4,6], 1 of 24 numbers differ by at most 2" in text
    assert "1 leaves are the same, 2 differ, 1 only in A, 1 only in B" in text


def test_damage_is_said_beside_what_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = run / "checkpoints" / "5"
    (damaged / "data" / "metadata").write_text("{}")
    assert cli.main(["diff", str(damaged), str(run / "checkpoints" / "3")]) == 1
    out, err = capsys.readouterr()
    assert "differ" in out
    assert err.startswith(f'note: checkpoint "{damaged}" is damaged (data/metadata has 2 bytes')


def test_bits_that_floats_hide_differ() -> None:
    from llmasos_jax.checkpoint.compare import Stored, compare

    def of(*numbers: float) -> dict:
        return {"w": Stored(f"float32[{len(numbers)}]", lambda: iter([np.float32(numbers)]))}

    assert compare(of(np.nan), of(np.nan)).is_same
    (zero,) = compare(of(0.0), of(-0.0)).different
    assert (zero.count, zero.max_abs) == (1, 0.0)
    assert np.isnan(compare(of(1.0, 2.0), of(np.nan, 2.5)).different[0].max_abs)
    assert compare(of(np.inf, 1), of(np.inf, 2)).different[0].max_abs == 1.0
    assert compare(of(1.0), of(1.0, 2.0)).different[0].max_abs is None
