"""Whatever the bytes, reading a model gives the model or a FormatError, and soon."""

import json
import pathlib
import shutil
import tempfile

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mutations import mutated

from llmasos_jax.errors import FormatError
from llmasos_jax.format.manifest import parse_manifest
from llmasos_jax.format.read import read_model
from llmasos_jax.format.tensorfile import open_tensors
from llmasos_jax.format.validate import validate

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "format-1"
MANIFEST = (FIXTURE / "model.json").read_bytes()
WEIGHTS = (FIXTURE / "model-00001-of-00002.safetensors").read_bytes()
HEADER = 8 + int.from_bytes(WEIGHTS[:8], "little")
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@SETTINGS
@given(mutated(MANIFEST, len(MANIFEST)))
@example(b"")
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 1_000_000)
@example(b'{"a":' * 1_000_000)
def test_any_manifest(raw: bytes) -> None:
    try:
        assert parse_manifest(raw).parameters.num_layers <= 4096
    except FormatError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


KEYS = sorted(json.loads(MANIFEST)["parameters"])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.sampled_from(["kind", "factor", "x"]), st.integers(-1, 3), max_size=2),
)


@SETTINGS
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4))
def test_any_parameters(changes: dict) -> None:
    """Well-formed JSON with wrong values: past the parser, into the checks."""
    found = json.loads(MANIFEST)
    found["parameters"].update(changes)
    try:
        parse_manifest(json.dumps(found).encode())
    except FormatError as error:
        assert "\n" not in str(error)


@SETTINGS
@given(mutated(WEIGHTS, HEADER))
@example(WEIGHTS[:8])
@example(b"\xff" * 16)
@example((2**25).to_bytes(8, "little") + b"{")
def test_any_safetensors(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.safetensors"
        path.write_bytes(raw)
        try:
            tensors = open_tensors(path)
            assert sum(t.nbytes for t in tensors.values()) <= len(raw)
            for tensor in tensors.values():
                assert tensor.read().nbytes == tensor.nbytes
        except FormatError as error:
            assert "\n" not in str(error)


@settings(SETTINGS, max_examples=60)
@given(st.sampled_from(sorted(p.name for p in FIXTURE.iterdir())), st.data())
def test_any_folder(name: str, data: st.DataObject) -> None:
    """One file of a whole model is mutated: validation sees it, or the model is the same."""
    content = (FIXTURE / name).read_bytes()
    raw = data.draw(mutated(content, len(content)))
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "model"
        shutil.copytree(FIXTURE, folder)
        (folder / name).write_bytes(raw)
        try:
            validate(folder)
        except FormatError:
            return
        before, after = read_model(FIXTURE), read_model(folder)
        for tensor_name, tensor in after.tensors.items():
            same = before.tensors[tensor_name].read()
            np.testing.assert_array_equal(tensor.read().view(np.uint8), same.view(np.uint8))
