"""Writing a model: all or nothing, whatever happens."""

import errno
import os
import pathlib
import signal
import textwrap

import commands
import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError
from llmasos_jax.format import folder as folders
from llmasos_jax.format import names, write
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.read import read_model
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.format.validate import validate

CFG = ModelConfig(vocab_size=11, embedding_dim=8, num_layers=2, ffn_dim=12)


def make_tensors(value: float) -> dict[str, StoredTensor]:
    return {n: stored(np.full(s.shape, value, np.float32)) for n, s in names.expected(CFG).items()}


def save(out: pathlib.Path, value: float, **options: object) -> None:
    write.write_model(out, Manifest("tiny", CFG), make_tensors(value), **options)


def value_of(folder: pathlib.Path) -> float:
    validate(folder)
    return float(read_model(folder).tensors["embed.table"].read()[0, 0])


def test_replaces_a_model_and_leaves_nothing_beside(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "m", 1, shard_bytes=300)
    save(tmp_path / "m", 2)
    assert value_of(tmp_path / "m") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]


def test_replaces_where_the_system_cannot_exchange(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    save(tmp_path / "m", 1)
    save(tmp_path / "m", 2)
    assert value_of(tmp_path / "m") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_empty_or_linked_folder_is_taken(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", 3)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    save(tmp_path / "link", 4)
    assert (tmp_path / "link").is_symlink() and value_of(tmp_path / "empty") == 4
    save(tmp_path / "a" / "new" / "one", 5)
    assert value_of(tmp_path / "a" / "new" / "one") == 5


def test_foreign_folders_are_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    save(tmp_path / "m", 1)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    for name, said in (("thesis", "chapter.tex"), ("file", "is a file"), ("m", "notes.txt")):
        with pytest.raises(FormatError, match=said):
            save(tmp_path / name, 2)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert value_of(tmp_path / "m") == 1


def test_wrong_tensors_are_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    tensors = make_tensors(1)
    del tensors["final_norm.scale"]
    with pytest.raises(FormatError, match=r"final_norm.scale: missing, expected \[8\]"):
        write.write_model(tmp_path / "m", Manifest("tiny", CFG), tensors)
    with pytest.raises(FormatError, match="float64 cannot be stored"):
        stored(np.zeros(3))
    lying = {**make_tensors(1), "embed.table": stored(np.zeros((11, 8), np.float32))}
    lying["embed.table"] = StoredTensor((11, 8), "float32", lambda: np.zeros((8, 11), np.float32))
    with pytest.raises(
        FormatError, match=r"announced as float32\[11,8\] and read as float32\[8,11\]"
    ):
        write.write_model(tmp_path / "m", Manifest("tiny", CFG), lying)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_disk_that_does_not_take_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    save(tmp_path / "m", 1)

    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FormatError) as caught:
        save(tmp_path / "m", 2)
    assert os.strerror(code) in str(caught.value) and str(tmp_path / "m") in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert value_of(tmp_path / "m") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_parent_that_is_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match="cannot write the model"):
        save(tmp_path / "file" / "m", 1)


KILLED = """
    import os, pathlib, signal, sys
    import numpy as np
    from llmasos_jax.format import names, write
    from llmasos_jax.format.manifest import Manifest
    from llmasos_jax.format.tensorfile import stored
    from llmasos_jax.config.model import ModelConfig

    cfg = ModelConfig(vocab_size=11, embedding_dim=8, num_layers=2, ffn_dim=12)
    tensors = {n: stored(np.full(s.shape, 2, np.float32)) for n, s in names.expected(cfg).items()}
    def die(name, size):
        if name == "layers.1.attn.q":
            os.kill(os.getpid(), signal.SIGKILL)
    write.write_model(sys.argv[1], Manifest("tiny", cfg), tensors, on_tensor=die)
"""


def test_killed_while_writing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "home").mkdir()
    models = tmp_path / "models"
    save(models / "m", 1)
    script = textwrap.dedent(KILLED)
    commands.run("-c", script, models / "m", home=tmp_path / "home", status=-signal.SIGKILL)
    assert value_of(models / "m") == 1
    assert len(list(models.iterdir())) == 2  # what the killed process was writing
    save(models / "m", 3)
    assert value_of(models / "m") == 3
    assert [p.name for p in models.iterdir()] == ["m"]
