"""Answers `check.py` through this package's public interface.

python conformance/llmasos_reader.py MODEL_DIR REQUEST.json ANSWER.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import llmasos


def main(folder: str, request: str, answer: str) -> None:
    """Answers one request of `check.py`."""
    asked = json.loads(Path(request).read_text())
    model = llmasos.load_model(folder)
    given = {}
    types = asked.get("token_types") or [None] * len(asked["sequences"])
    for ids, row in zip(asked["sequences"], types, strict=True):
        rows = {"token_ids": [ids], "token_type_ids": None if row is None else [row]}
        if model.config.head is None:
            given.setdefault("hidden", []).append(model.hidden_states(**rows)[-1][0].tolist())
        else:
            given.setdefault("logits", []).append(model.logits(**rows)[0].tolist())
    if asked.get("prompt"):
        ids = list(asked["prompt"])
        for _ in range(asked["count"]):
            ids.append(int(model.logits([ids])[0, -1].argmax()))
        given["greedy"] = ids[len(asked["prompt"]) :]
    if asked.get("texts"):
        given["ids"] = [model.encode(text) for text in asked["texts"]]
    if asked.get("texts") and not model.config.causal:
        given |= of_texts(model, asked)
    Path(answer).write_text(json.dumps(given))


def of_texts(model: llmasos.Model, asked: dict) -> dict:
    """What an encoder says of whole texts."""
    given: dict = {"embeddings": model.embed(asked["texts"], normalize=False).tolist()}
    names, level = model.config.classifier.labels, model.config.classifier.level

    def in_order(labels: Sequence) -> list[float]:
        return [each.probability for each in sorted(labels, key=lambda x: names.index(x.label))]

    if names and level == "sequence":
        given["labels"] = [in_order(labels) for labels in model.classify(asked["texts"])]
    elif names:
        found = model.classify(asked["texts"])
        given["labels"] = [[in_order(token.labels) for token in text] for text in found]
    if "pairs" in asked:
        firsts, seconds = zip(*asked["pairs"], strict=True)
        given["next_sentence"] = model.next_sentence(firsts, seconds)
    return given


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except llmasos.LLMasOSError as error:
        sys.exit(f"refused: {error}")
