"""Conversations of two people as records to learn from, and questions in them to be answered.

    pip install --no-deps chitchat-dataset==0.9.0
    python experiments/dialogue/data.py DIR

reads the corpus that the package ships, and writes DIR/train.jsonl, {"messages"}, DIR/heldout.jsonl
with a question of each of 200 held-out conversations, its reply and three other replies, and the
tasks beside them. All conversations that were begun with one topic are on one side.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HELDOUT = 200
HELDOUT_TOPICS = 0.1  # share
TURNS = 8  # of a record at most
MAX_CHARS = 240  # of a turn
OTHERS = 3  # replies to other questions, of which the right one is told


def turns(conversation: Mapping[str, Any]) -> list[str]:
    """What was said in turn, one text each, up to the first that is too long or empty."""
    found: list[tuple[str, str]] = []
    for message in conversation["messages"]:
        sender = message[0]["sender"]
        text = " ".join(" ".join(part["text"] for part in message).split())
        if found and found[-1][0] == sender:
            text = f"{found.pop()[1]} {text}"
        if not text or len(text) > MAX_CHARS:
            break
        found.append((sender, text))
    return [text for _, text in found]


def is_heldout(topic: str) -> bool:
    """By the topic's hash."""
    number = int.from_bytes(hashlib.sha256(topic.encode()).digest()[:8], "big")
    return number < HELDOUT_TOPICS * 2**64


def record(texts: Sequence[str]) -> dict[str, Any] | None:
    """A conversation's beginning, the second speaker as the assistant; None of a single turn."""
    kept = texts[: min(TURNS, len(texts)) // 2 * 2]
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(kept)]
    return {"messages": messages} if kept else None


def question(texts: Sequence[str]) -> tuple[str, str] | None:
    """The first turn that is a question of 20 characters or more, and the answer."""
    for asked, reply in zip(texts, texts[1:], strict=False):
        if asked.endswith("?") and len(asked) >= 20:
            return asked, reply
    return None


def heldout(conversations: Sequence[Sequence[str]], known: set[str]) -> Iterator[dict[str, Any]]:
    """Questions that differ from each other and from all that is learned."""
    pairs: dict[str, str] = {}
    for texts in conversations:
        pair = question(texts)
        if pair is not None and pair[0] not in known and pair[1] not in pairs.values():
            pairs.setdefault(*pair)
    by_hash = lambda asked: hashlib.sha256(asked.encode()).digest()
    asked = sorted(pairs, key=by_hash)[:HELDOUT]
    for i, text in enumerate(asked):
        others = [pairs[asked[(i + step) % len(asked)]] for step in range(1, OTHERS + 1)]
        place = by_hash(text)[-1] % (OTHERS + 1)
        replies = [*others[:place], pairs[text], *others[place:]]
        yield {"question": text, "reply": pairs[text], "replies": replies, "right": place}


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "chitchat-dataset is not installed; pip install --no-deps chitchat-dataset==0.9.0"
        )
    args.folder.mkdir(parents=True, exist_ok=True)
    corpus = json.loads(Path(spec.origin).with_name("dataset.json").read_text("utf-8"))
    sides: tuple[list[list[str]], list[list[str]]] = ([], [])
    for key in sorted(corpus):
        texts = turns(corpus[key])
        if len(texts) >= 4:
            sides[is_heldout(corpus[key].get("prompt") or key)].append(texts)
    train = [row for row in map(record, sides[0]) if row is not None]
    known = {text for texts in sides[0] for text in texts}
    for name, rows in (("train", train), ("heldout", list(heldout(sides[1], known)))):
        with open(args.folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{name}: {len(rows):,}")
    for task in ("replies.toml", "written.toml"):
        shutil.copy(Path(__file__).with_name(task), args.folder)


if __name__ == "__main__":
    main()
