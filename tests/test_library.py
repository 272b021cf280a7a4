"""The model library with the real weights that two packages carry (see requirements/models.txt)."""

import importlib.util
import json
import re

import commands
import numpy as np
import pytest

from llmasos_jax import LLMasOS
from llmasos_jax.hub.library import LIBRARY

SMOLLM = "smollm2-135m-instruct"


def needs(name):
    """Skips a test where the package that carries a model is not installed."""
    package = LIBRARY[name].package
    is_here = importlib.util.find_spec(package.module) is not None
    return pytest.mark.skipif(not is_here, reason=f"needs {package.install}, or `make models`")


@pytest.fixture(scope="module")
def smollm():
    return LLMasOS.load_model(SMOLLM)


@needs(SMOLLM)
def test_the_capital_of_france(smollm):
    text = smollm.generate_text("The capital of France is", max_length=10, temperature=0)
    assert "Paris" in text
    assert smollm.num_parameters == LIBRARY[SMOLLM].num_parameters
    assert smollm.manifest.name == SMOLLM


@needs(SMOLLM)
def test_chat(smollm):
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    assert "Paris" in smollm.chat(messages, max_length=20, temperature=0)


@needs(SMOLLM)
def test_converted_it_writes_the_same(smollm, tmp_path):
    folder = smollm.save(tmp_path / "model")
    again = LLMasOS.load_model(folder)
    ids = [smollm.encode("The capital of France is")]
    np.testing.assert_array_equal(again.logits(ids), smollm.logits(ids))
    assert again.encode("a  b\n12") == smollm.encode("a  b\n12")


@needs(SMOLLM)
def test_inspect_and_models_say_where_it_is(tmp_path):
    listed = json.loads(commands.llmasos("models", SMOLLM, "--json", home=tmp_path).stdout)
    (row,) = listed["models"]
    assert row["where"] == "package" and row["path"].endswith(".gguf")
    assert row["licence"] == "Apache-2.0" and row["bytes"] == 98_362_432
    seen = json.loads(commands.llmasos("inspect", SMOLLM, "--json", home=tmp_path).stdout)
    assert seen["format"] == "gguf" and seen["path"] == row["path"]
    assert seen["tensor_types"] == {"Q8_0": 1, "F32": 61, "Q4_1": 210}


@needs("all-minilm-l6-v2")
def test_the_encoder_embeds(tmp_path):
    model = LLMasOS.load_model("all-minilm-l6-v2")
    states = model.hidden_states([[101, 1996, 3007, 102]])
    assert len(states) == 7 and states[-1].shape == (1, 4, 384)


def test_the_packages_are_those_that_the_tests_install():
    root = commands.ROOT
    lines = (root / "requirements" / "models.txt").read_text().splitlines()
    pinned = {line for line in lines if not line.startswith("#")}
    packages = [model.package for model in LIBRARY.values() if model.package]
    # Beside the models stands a real sentencepiece file, for tests of tokenizers.
    tokenizers = {line for line in pinned if line.startswith("mistral-common==")}
    assert pinned - tokenizers == {f"{p.distribution}=={p.version}" for p in packages}
    assert all(re.fullmatch(r"[0-9a-f]{64}", p.sha256) for p in packages)
