"""A clone without git-lfs has pointers in place of files: each reader says so and what to do."""

import pathlib

import pytest
from small_hf import LLAMA, write

from llmasos_jax.errors import FormatError
from llmasos_jax.format.read import read_model
from llmasos_jax.format.tensorfile import open_tensors
from llmasos_jax.hub.open import open_model
from llmasos_jax.interop.hf.tokenizer import folder_tokenizer_files

POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 548105171
"""


def said(call, *args) -> str:
    with pytest.raises(FormatError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
)
def test_a_pointer_in_a_hugging_face_folder(tmp_path: pathlib.Path, name: str) -> None:
    write(tmp_path, LLAMA)
    open_model(tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    message = said(open_model, tmp_path)
    assert message.endswith(f"{name} is a git-lfs pointer; run `git lfs pull` in its folder")


def test_a_pointer_in_place_of_an_index(tmp_path: pathlib.Path) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_bytes(POINTER)
    assert "index.json is a git-lfs pointer; run" in said(open_model, tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.txt"])
def test_a_pointer_in_place_of_a_tokenizer(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    files = folder_tokenizer_files(tmp_path)
    assert files is not None
    assert f"{name} is a git-lfs pointer; run `git lfs pull`" in said(files.load)


@pytest.mark.parametrize(
    ("name", "reader"),
    [("m.gguf", open_model), ("model.json", read_model), ("model.safetensors", open_tensors)],
)
def test_a_pointer_in_place_of_one_file(tmp_path: pathlib.Path, name: str, reader) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    assert f"{name} is a git-lfs pointer; run `git lfs pull`" in said(reader, path)
    path.write_bytes(POINTER[1:])
    assert "git-lfs pointer" not in said(reader, path)
