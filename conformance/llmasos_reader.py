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
    for row in rows(asked):
        if model.config.head is None:
            given.setdefault("hidden", []).append(model.hidden_states(**row)[-1][0].tolist())
        else:
            given.setdefault("logits", []).append(model.logits(**row)[0].tolist())
    if asked.get("prompt"):
        given["greedy"] = greedy(model, asked["prompt"], asked["count"])
    if asked.get("texts"):
        given["ids"] = [model.encode(text) for text in asked["texts"]]
    if asked.get("texts") and not model.config.causal:
        given |= of_texts(model, asked)
    Path(answer).write_text(json.dumps(given))


def rows(asked: dict) -> list[dict]:
    """The arguments of `logits` for each sequence."""
    kinds = {"token_types": "token_type_ids", "decoder": "decoder_ids"}
    found = []
    for i, ids in enumerate(asked["sequences"]):
        row: dict = {"token_ids": [ids]}
        row |= {name: [asked[key][i]] for key, name in kinds.items() if key in asked}
        if "prefixes" in asked:
            row["prefix_lengths"] = [asked["prefixes"][i]]
        found.append(row)
    return found


def greedy(model: llmasos.Model, prompt: list[int], count: int) -> list[int]:
    """The best next id, `count` times; of an encoder-decoder those of its decoder."""
    start_id = model.manifest.generation.decoder_start_id
    ids = list(prompt) if start_id is None else [start_id]
    prefix = [len(prompt)] if model.config.prefix_lm else None
    for _ in range(count):
        if start_id is None:
            scores = model.logits([ids], prefix_lengths=prefix)
        else:
            scores = model.logits([prompt], decoder_ids=[ids])
        ids.append(int(scores[0, -1].argmax()))
    return ids[-count:]


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
