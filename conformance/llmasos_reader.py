"""Answers `check.py` through this package's public interface.

python conformance/llmasos_reader.py MODEL_DIR REQUEST.json ANSWER.json
"""

import json
import sys
from pathlib import Path

import llmasos


def main(folder: str, request: str, answer: str) -> None:
    """Answers one request of `check.py`."""
    asked = json.loads(Path(request).read_text())
    model = llmasos.load_model(folder)
    given = {}
    if asked.get("token_types"):
        for ids, types in zip(asked["sequences"], asked["token_types"], strict=True):
            states = model.hidden_states([ids], token_type_ids=[types])
            given.setdefault("hidden", []).append(states[-1][0].tolist())
    else:
        given["logits"] = [model.logits([ids])[0].tolist() for ids in asked["sequences"]]
    if asked.get("prompt"):
        ids = list(asked["prompt"])
        for _ in range(asked["count"]):
            ids.append(int(model.logits([ids])[0, -1].argmax()))
        given["greedy"] = ids[len(asked["prompt"]) :]
    if asked.get("texts"):
        given["ids"] = [model.encode(text) for text in asked["texts"]]
    Path(answer).write_text(json.dumps(given))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except llmasos.LLMasOSError as error:
        sys.exit(f"refused: {error}")
