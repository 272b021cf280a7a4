"""Safetensors and model folders: round trips, what is refused, nothing read from outside."""

import json
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError
from llmasos_jax.format import names, tensorfile
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.read import read_manifest, read_model
from llmasos_jax.format.validate import validate
from llmasos_jax.format.write import write_model
from llmasos_jax.models.definition import file_def

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "format-1"
CFG = ModelConfig(
    vocab_size=11, embedding_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=12
)


def make_arrays(cfg: ModelConfig = CFG, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return {n: rng.normal(size=s.shape).astype(kind) for n, s in names.expected(cfg).items()}


def save(
    folder: pathlib.Path, cfg: ModelConfig = CFG, dtype: str = "float32", **options: int
) -> dict:
    arrays = make_arrays(cfg, dtype)
    tensors = {name: tensorfile.stored(array) for name, array in arrays.items()}
    write_model(folder, Manifest("tiny", cfg), tensors, **options)
    return arrays


def assert_same(arrays: dict[str, np.ndarray], folder: pathlib.Path) -> None:
    files = read_model(folder)
    assert list(files.tensors) == list(arrays)
    for name, array in arrays.items():
        found = files.tensors[name].read()
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found.view(np.uint8), array.view(np.uint8))


def framed(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw


def header(entries: dict, data: bytes = b"", length: int | None = None) -> bytes:
    raw = json.dumps(entries).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


BROKEN = {
    "too short": (b"\x01", "has 1 bytes"),
    "empty": (b"", "has 0 bytes"),
    "lying length": (header(entry(), bytes(8), length=2**63), "claims a header of"),
    "header past the end": (header(entry(), bytes(8), length=500), "claims a header of"),
    "not JSON": ((5).to_bytes(8, "little") + b"{nope", "not JSON"),
    "not an object": ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
    "unknown dtype": (header(entry("I8"), bytes(8)), "the format stores F32, BF16, F16"),
    "dtype is a list": (header(entry([]), bytes(8)), "the format stores"),
    "negative size": (header(entry(shape=[-2]), bytes(8)), "has shape"),
    "huge size": (header(entry(shape=[2**63]), bytes(8)), "has shape"),
    "size is a bool": (header(entry(shape=[True]), bytes(4)), "has shape"),
    "many axes": (header(entry(shape=[1] * 9), bytes(8)), "has shape"),
    "huge product": (header(entry(shape=[2**61] * 4), bytes(8)), "takes 8 bytes"),
    "backwards": (header(entry(offsets=[8, 0]), bytes(8)), "data_offsets"),
    "past the end": (header(entry(shape=[4], offsets=[0, 16]), bytes(8)), "cut off or damaged"),
    "gap": (header(entry(offsets=[4, 12]), bytes(12)), "leaves a gap"),
    "bytes after": (header(entry(), bytes(9)), "cut off or damaged"),
    "overlap": (
        header({**entry(), "v": entry(offsets=(4, 12))["w"]}, bytes(12)),
        "overlaps the one before",
    ),
    "wrong length": (header(entry(shape=[3]), bytes(8)), "takes 12"),
    "extra key": (header({"w": {**entry()["w"], "x": 1}}, bytes(8)), "exactly the keys"),
    "metadata": (header({"__metadata__": {"a": 1}, **entry()}, bytes(8)), "strings to strings"),
    "twice": (framed(b'{"w": {}, "w": {}}'), 'the key "w" stands twice'),
    "infinite": (framed(b'{"w": {"shape": [1e9999]}}'), "too large"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_safetensors(tmp_path: pathlib.Path, what: str) -> None:
    raw, expected = BROKEN[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        tensorfile.open_tensors(path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_is_bit_exact(tmp_path: pathlib.Path, dtype: str) -> None:
    arrays = save(tmp_path / "m", dtype=dtype)
    assert_same(arrays, tmp_path / "m")
    checked = validate(tmp_path / "m")
    assert checked.hashes_checked and checked.num_parameters == sum(a.size for a in arrays.values())


def test_the_library_reads_what_we_write(tmp_path: pathlib.Path) -> None:
    arrays = save(tmp_path / "m", dtype="bfloat16")
    with safetensors.safe_open(tmp_path / "m" / "model.safetensors", framework="numpy") as found:
        assert set(found.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.get_tensor(name), array)


def test_we_read_what_the_library_writes(tmp_path: pathlib.Path) -> None:
    arrays = make_arrays()
    (tmp_path / "model.json").write_text(
        '{"name": "m", "version": "1", "architecture": "Transformer", "parameters": {'
        '"vocab_size": 11, "embedding_dim": 8, "num_layers": 2, "num_heads": 2, '
        '"num_kv_heads": 1, "ffn_dim": 12}}'
    )
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    assert_same(arrays, tmp_path)
    assert not validate(tmp_path / "model.json").hashes_checked


def test_reading_is_lazy_and_does_not_copy(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "m")
    tensor = read_model(tmp_path / "m").tensors["embed.table"]
    array = tensor.read()
    assert not array.flags.owndata and not array.flags.writeable
    assert array.ctypes.data % 64 == 0  # aligned, so that JAX on CPU can use it where it lies


def test_names_are_the_models_own(tmp_path: pathlib.Path) -> None:
    """What we call expected is what the model has, for every option that adds or takes a tensor."""
    options = [
        {},
        {"norm": "layernorm", "position": "learned", "mlp": "gelu", "mlp_bias": True},
        {"qkv_bias": True, "attention_out_bias": True, "tie_embeddings": False, "qk_norm": "full"},
        {"norm_placement": "sandwich", "qk_norm": "head", "embedding_norm": True},
        {"block": "parallel", "position": "alibi", "final_norm": False},
        {"block": "parallel_two_norms", "norm": "layernorm", "norm_bias": False},
        {"norm_placement": "output", "attention_windows": (4, None)},
        {"norm_placement": "post", "mlp": "geglu", "mlp_bias": True},
    ]
    for changes in options:
        cfg = CFG.replace(**changes)
        definition = file_def(cfg)
        shapes, axes = names.flatten(definition.shapes), names.flatten(definition.axes)
        expected = names.expected(cfg)
        assert set(expected) == set(shapes)
        assert {n: s.shape for n, s in expected.items()} == {n: s.shape for n, s in shapes.items()}
        assert {n: s.axes for n, s in expected.items()} == axes
        assert names.flatten(names.unflatten(shapes)) == shapes


def test_every_wrong_tensor_is_named(tmp_path: pathlib.Path) -> None:
    arrays = save(tmp_path)
    arrays["layers.0.attn.kk"] = arrays.pop("layers.0.attn.k")
    arrays["embed.table"] = arrays["embed.table"][:10]
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "model.json").read_text())
    del text["weights"]
    (tmp_path / "model.json").write_text(json.dumps(text))
    with pytest.raises(FormatError) as caught:
        read_model(tmp_path)
    message = str(caught.value)
    assert "(3 tensors differ)" in message
    assert "embed.table: the file has [10, 8], the model [11, 8]" in message
    assert (
        'layers.0.attn.k: missing, expected [8, 1, 4]; did you mean "layers.0.attn.kk"' in message
    )
    assert "layers.0.attn.kk: float32[8,1,4] is not a tensor of the model" in message


def edit(folder: pathlib.Path, **changes: object) -> None:
    found = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**found, **changes}))


def refused(folder: pathlib.Path) -> str:
    with pytest.raises(FormatError) as caught:
        validate(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_weights_and_wrong_bytes(tmp_path: pathlib.Path) -> None:
    save(tmp_path)
    weights = tmp_path / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    read_model(tmp_path)  # one bit in a tensor: only its hash tells
    assert "model.safetensors has sha256" in refused(tmp_path)
    weights.write_bytes(raw[:-1])
    assert "it is cut off or another file" in refused(tmp_path)
    weights.unlink()
    assert "No such file" in refused(tmp_path)


def test_no_weights_names_init_model(tmp_path: pathlib.Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    edit(tmp_path, weights=None)
    assert "init_model(" in refused(tmp_path)
    assert read_manifest(tmp_path).parameters == CFG


def test_links_do_not_leave_the_folder(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b")
    inside = tmp_path / "b" / "model.safetensors"
    inside.unlink()
    inside.symlink_to(tmp_path / "a" / "model.safetensors")
    assert "leaves the model's folder" in refused(tmp_path / "b")
    inside.unlink()
    inside.symlink_to(inside)
    assert "cannot read" in refused(tmp_path / "b")
    inside.unlink()
    os.mkfifo(inside)
    assert "not a regular file" in refused(tmp_path / "b")
    inside.unlink()
    inside.mkdir()
    assert "not a regular file" in refused(tmp_path / "b")


def test_a_linked_folder_is_fine(tmp_path: pathlib.Path) -> None:
    arrays = save(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert_same(arrays, tmp_path / "link")


@pytest.mark.parametrize("source", ["nowhere", "file.txt", "empty", "a\0b"])
def test_what_is_no_model_is_said(tmp_path: pathlib.Path, source: str) -> None:
    (tmp_path / "file.txt").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError):
        read_model(f"{tmp_path}/{source}")


def test_shards_and_index(tmp_path: pathlib.Path) -> None:
    arrays = save(tmp_path / "m", shard_bytes=500)
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same(arrays, tmp_path / "m")
    assert validate(tmp_path / "m").num_tensors == len(arrays)
    index_file = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    index["weight_map"]["embed.table"] = files[-1]
    index_file.write_text(json.dumps(index))
    assert "does not say which tensor is in which file" in refused(tmp_path / "m")


def test_released_format_1_keeps_loading() -> None:
    """Written by the first release; never write it again. Format 1 files stay readable."""
    files = read_model(FIXTURE)
    assert files.manifest.name == "format-1"
    assert files.manifest.parameters.attention_windows == (4, None)
    assert validate(FIXTURE).num_parameters == 8064
    table = files.tensors["embed.table"].read()
    assert (str(table.dtype), table.shape) == ("bfloat16", (259, 16))
    assert table[7, 3] == ml_dtypes.bfloat16(7.1875)
