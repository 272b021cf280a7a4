"""GGUF files of every architecture that is read: config, every tensor, and llama.cpp's logits."""

from pathlib import Path

import numpy as np
import pytest
from gguf_converter import random_params, write_gguf
from gguf_twins import TWINS, Twin, V
from llama_server import LlamaServer

from llmasos_jax.format.names import expected
from llmasos_jax.generate.load import load_model
from llmasos_jax.interop.gguf import open_gguf

pytest.importorskip("gguf", reason="the package gguf is not installed")


@pytest.fixture(scope="module", params=list(TWINS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A twin, its weights, its file."""
    twin = TWINS[request.param]
    params = random_params(twin.cfg)
    path = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    write_gguf(path, twin, params)
    return twin, params, path


def test_config_and_every_tensor(written: tuple[Twin, dict, Path]) -> None:
    twin, params, path = written
    files = open_gguf(path)
    assert files.manifest.parameters == twin.cfg
    assert list(files.tensors) == list(expected(twin.cfg))
    for name, tensor in files.tensors.items():
        wanted = params[name]
        if name.endswith(".scale") and twin.cfg.norm_unit_offset:
            # As far as the converter's sum, a float32 number, still tells it.
            wanted = wanted + np.float32(1) - np.float32(1)
        array = tensor.read()
        assert tensor.shape == wanted.shape and tensor.dtype == str(array.dtype) == "float32"
        np.testing.assert_array_equal(array, wanted, err_msg=name)


def test_logits_are_those_of_llama_cpp(written: tuple[Twin, dict, Path]) -> None:
    """The last of 24 tokens, which is beyond every window and every first context."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    twin, _, path = written
    if twin.tolerance is None:
        pytest.skip("llama.cpp computes something else: see the twin")
    ids = np.random.default_rng(0).integers(3, V, 24)
    theirs = np.array(LlamaServer(path, is_exact=True).log_probabilities(ids.tolist(), V))
    logits = np.asarray(load_model(path).logits(ids[None]))[0, -1].astype(np.float64)
    ours = logits - np.logaddexp.reduce(logits)
    assert theirs.shape == (V,) and theirs.std() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=twin.tolerance)
