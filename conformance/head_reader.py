"""The heads of an encoder, in NumPy: part of the second implementation (`numpy_reader.py`).

Follows 4.8 and 4.9 of `docs/format.md`. `model` has the parameters `p`, and `get`, `bias`, `norm`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def affine(model: Any, x: np.ndarray, name: str, size: int) -> np.ndarray:
    """A product and its bias."""
    d = model.p["embedding_dim"]
    return x @ model.get(f"{name}.w", d, size) + model.get(f"{name}.bias", size)


def mlm(model: Any, x: np.ndarray, act: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What stands in place of x before the output layer of an MLM head (4.8)."""
    d = model.p["embedding_dim"]
    y = x @ model.get("head.transform.w", d, d)
    y = act(y + model.bias(model.p["mlp_bias"], "head.transform.bias", d))
    return model.norm(y, "head.norm", d)


def embedding(model: Any, x: np.ndarray) -> np.ndarray:
    """The embedding [D] of a text from its states [T, D], not divided by its length (4.9)."""
    return x.mean(0) if model.p["pooling"] == "mean" else x[0]


def pooled(model: Any, x: np.ndarray) -> np.ndarray:
    """The pooled state [D] of a text (4.9)."""
    d = model.p["embedding_dim"]
    return np.tanh(affine(model, x[0], "pooler", d)) if model.p["pooler"] else embedding(model, x)


def next_sentence(model: Any, x: np.ndarray) -> float:
    """The probability that the second text follows the first (4.9)."""
    return float(softmax(affine(model, pooled(model, x), "next_sentence", 2))[0])


def labels(model: Any, x: np.ndarray) -> np.ndarray:
    """The labels' probabilities [C], or of each token [T, C] (4.9)."""
    size, by_token = len(model.p["classifier"]["labels"]), model.p["classifier"]["level"] == "token"
    return softmax(affine(model, x if by_token else pooled(model, x), "classifier", size))


def use_all(model: Any, x: np.ndarray) -> None:
    """Asks for every tensor of the heads that there are."""
    if model.p["pooler"]:
        pooled(model, x)
    if model.p["next_sentence"]:
        next_sentence(model, x)
    if model.p["classifier"]["labels"]:
        labels(model, x)


def answers(model: Any, asked: dict, read: Callable[..., list[list[int]]]) -> dict:
    """What texts and pairs of an encoder give; `read` gives ids and types of what it reads."""
    given: dict[str, list] = {}
    states = [model.hidden(*read(text)) for text in asked.get("texts", ())]
    given["embeddings"] = [embedding(model, x).tolist() for x in states]
    if model.p["classifier"]["labels"]:
        # Of tokens: those that are text, between the two special ones.
        inner = slice(1, -1) if model.p["classifier"]["level"] == "token" else slice(None)
        given["labels"] = [labels(model, x)[inner].tolist() for x in states]
    if "pairs" in asked:
        pairs = [model.hidden(*read(*pair)) for pair in asked["pairs"]]
        given["next_sentence"] = [next_sentence(model, x) for x in pairs]
    return given
