"""Gemma's 1 + scale: every scale back to the bit, in files of ours and of the converter."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf_converter import random_params
from gguf_converter import write_gguf as convert
from gguf_twins import TWINS

from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import FormatError
from llmasos_jax.evals.export.gguf import Gguf
from llmasos_jax.evals.export.proof import prove
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.interop.built import BuiltTokenizer
from llmasos_jax.interop.gguf import open_gguf
from llmasos_jax.interop.gguf.container import read_container
from llmasos_jax.interop.gguf.norms import rests
from llmasos_jax.interop.gguf.quants import read_tensor
from llmasos_jax.interop.gguf.write import write_gguf
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.write import write_huggingface

GEMMAS = ("gemma", "gemma2", "gemma3")
# Below half of 1's last place, at a half, of either sign, beyond 2^24, and where the sum is 0.
HARD = (0.0, -0.0, 1e-9, -1e-30, 2.0**-24, -(2.0**-25), 1.9999999, -0.9999999, -1.0, 3e7, -3e7, 0.1)


def files_of(name: str, params: dict[str, np.ndarray] | None = None) -> ModelFiles:
    twin = TWINS[name]
    arrays = random_params(twin.cfg) if params is None else params
    tensors = {n: stored(array) for n, array in arrays.items()}
    return ModelFiles(Path("x"), Manifest(name, twin.cfg, architecture="Gemma"), tensors, None)


def bits(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).view(np.uint32)


def test_hard_scales_come_back(tmp_path: Path) -> None:
    params = random_params(TWINS["gemma3"].cfg)
    rng = np.random.default_rng(1)
    for name in (n for n in params if n.endswith(".scale")):
        size = params[name].size
        wide = rng.standard_normal(size) * 10.0 ** rng.integers(-12, 4, size)
        wide[: len(HARD)] = HARD[:size]
        params[name] = wide.astype(np.float32)
    write_gguf(files_of("gemma3", params), tmp_path, dtype="Q8_0")
    path = tmp_path / "gemma3-Q8_0.gguf"
    back = open_gguf(path)
    assert back.manifest.parameters == TWINS["gemma3"].cfg
    for name in (n for n in params if n.endswith(".scale")):
        np.testing.assert_array_equal(bits(back.tensors[name].read()), bits(params[name]), name)
    # What llama.cpp multiplies by is the sum, rounded once.
    info = read_container(path).tensors["output_norm.weight"]
    wanted = 1 + params["final_norm.scale"].astype(np.float64)
    np.testing.assert_array_equal(read_tensor(path, info), wanted.astype(np.float32))


def test_published_scales_need_nothing_beside_them(tmp_path: Path) -> None:
    """bfloat16 from 2^-16 on has room for the 1 in float32."""
    params = random_params(TWINS["gemma"].cfg)
    for name in (n for n in params if n.endswith(".scale")):
        params[name] = params[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    files = files_of("gemma", params)
    assert rests(files.manifest.parameters, files.tensors) == {}
    convert(tmp_path / "m.gguf", TWINS["gemma"], params)
    for name, tensor in open_gguf(tmp_path / "m.gguf").tensors.items():
        np.testing.assert_array_equal(bits(tensor.read()), bits(params[name]), name)


@pytest.mark.parametrize("name", GEMMAS)
def test_on_to_hugging_face(name: str, tmp_path: Path) -> None:
    """A file becomes the folder that the model itself becomes."""
    files = files_of(name)
    write_gguf(files, tmp_path, dtype="F32")
    (tmp_path / "hf").mkdir()
    write_huggingface(open_gguf(tmp_path / f"{name}-F32.gguf"), tmp_path / "hf")
    back = open_hf(tmp_path / "hf")
    assert back.manifest.parameters.norm_unit_offset
    assert list(back.tensors) == list(files.tensors)
    for tensor_name, tensor in files.tensors.items():
        found = bits(back.tensors[tensor_name].read())
        np.testing.assert_array_equal(found, bits(tensor.read()), tensor_name)


@pytest.mark.parity
def test_llama_cpp_takes_what_is_beside(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    files, target = files_of("gemma"), Gguf()
    files = dataclasses.replace(files, tokenizer=BuiltTokenizer(ByteTokenizer))
    assert rests(files.manifest.parameters, files.tensors)
    written = target.write(files, tmp_path, "float32", lambda name, size: None)
    proof = prove(target, files, tmp_path, written, "float32", 0, new_tokens=2)
    assert proof.rounded.tensors == 0 and proof.greedy == 4


@pytest.mark.parametrize(("name", "offset"), [("gemma", False), ("llama", True)])
def test_a_model_whose_norms_are_not_its_familys(name: str, offset: bool, tmp_path: Path) -> None:
    files = files_of(name)
    cfg = dataclasses.replace(TWINS[name].cfg, norm_unit_offset=offset)
    files = dataclasses.replace(files, manifest=files.manifest.replace(parameters=cfg))
    write_gguf(files, tmp_path, dtype="F32")
    path = tmp_path / f"{name}-F32.gguf"
    assert read_container(path).metadata["llmasos.norm_unit_offset"] is offset
    back = open_gguf(path)
    assert back.manifest.parameters == cfg
    for tensor_name, tensor in files.tensors.items():
        found = bits(back.tensors[tensor_name].read())
        np.testing.assert_array_equal(found, bits(tensor.read()), tensor_name)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("norm_rests.final_norm.scale", [0.5], "is no key that this version reads"),
        ("norm_rest.layers.9.mlp_norm.scale", [0.5], "is no key that this version reads"),
        ("norm_rest.final_norm.scale", [0.5] * 31, "must be 32 finite float32 numbers"),
        ("norm_rest.final_norm.scale", [1] * 32, "must be 32 finite float32 numbers"),
        ("norm_rest.final_norm.scale", [float("nan")] * 32, "must be 32 finite float32"),
        ("norm_unit_offset", 1, "must be true or false"),
    ],
)
def test_wrong_keys_of_ours(key: str, value: object, told: str, tmp_path: Path) -> None:
    twin = TWINS["gemma"]
    more = {f"llmasos__{key.replace('.', '__')}": value}
    convert(tmp_path / "m.gguf", twin, random_params(twin.cfg), **more)
    with pytest.raises(FormatError, match=told):
        open_gguf(tmp_path / "m.gguf")
