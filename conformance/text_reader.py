"""Text to ids, from `docs/format.md` chapter 5 alone: the second implementation's tokenizers.

Reads what the kit's models have: bytes, sentencepiece's BPE, byte-level BPE of a `tokenizer.json`.
"""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

SPACE = "\u2581"  # what sentencepiece writes for a space
UNKNOWN, CONTROL, BYTE = 2, 3, 6  # kinds of its pieces


def encode(folder: Path, text: str) -> list[int]:
    """The ids of a text by the tokenizer of a model's folder."""
    entry = json.loads((folder / "model.json").read_text())["tokenizer"]
    if entry["kind"] == "bytes":
        return [256, *text.encode()]
    raw = (folder / entry["file"]).read_bytes()
    if entry["kind"] == "sentencepiece":
        return sentencepiece(raw, text)
    ids = byte_level(json.loads(raw), text)
    return [entry["bos_id"], *ids] if entry["adds_bos"] else ids


def encode_input(folder: Path, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
    """Ids and token types of what an encoder reads of a text or of two (5.2); bytes only."""
    entry = json.loads((folder / "model.json").read_text())["tokenizer"]
    if entry["kind"] != "bytes":
        raise ValueError(f"an encoder's {entry['kind']}")
    first = [256, *text.encode(), 257]
    second = [] if pair is None else [*pair.encode(), 257]
    return first + second, [0] * len(first) + [1] * len(second)


def fields(raw: bytes) -> list[tuple[int, int | bytes]]:
    """The (number, value) pairs of one protobuf message."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = raw[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(raw):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        found.append((key >> 3, raw[at : at + size]))
        at += size
    return found


def sentencepiece(raw: bytes, text: str) -> list[int]:
    """BPE by scores, bytes for what has no piece; neither a prefix space nor other rewriting."""
    pieces = [dict(fields(value)) for number, value in fields(raw) if number == 1]
    trainer = dict(fields(next(value for number, value in fields(raw) if number == 2)))
    names = [piece[1].decode() for piece in pieces]
    ids = {name: number for number, name in enumerate(names)}
    scores = {
        name: struct.unpack("<f", piece.get(2, bytes(4)))[0]
        for name, piece in zip(names, pieces, strict=True)
        if piece.get(3, 1) not in (UNKNOWN, CONTROL, BYTE)
    }
    parts = merged(list(text.replace(" ", SPACE)), lambda a, b: -scores.get(a + b, -1e30))
    out = [trainer.get(41, 1)]
    for part in parts:
        has_piece = part in scores
        out += [ids[part]] if has_piece else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return out


def byte_level(found: dict, text: str) -> list[int]:
    """Special tokens first, then pieces by regular expressions, then BPE by rank in each."""
    special = {token["content"]: token["id"] for token in found["added_tokens"]}
    split = "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True))
    vocab = found["model"]["vocab"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(found["model"]["merges"])}
    patterns = [
        step["pattern"]["Regex"]
        for step in found["pre_tokenizer"]["pretokenizers"]
        if step["type"] == "Split"
    ]
    out = []
    for part in re.split(f"({split})", text):
        if part in special:
            out.append(special[part])
            continue
        pieces = [part]
        for pattern in patterns:
            pieces = [p for piece in pieces for p in re.split(f"({pattern})", piece) if p]
        for piece in pieces:
            letters = [CHARACTERS[byte] for byte in piece.encode()]
            out += [vocab[p] for p in merged(letters, lambda a, b: ranks.get((a, b), 1e30))]
    return out


def merged(parts: list[str], cost: Callable[[str, str], float]) -> list[str]:
    """Joins the two neighbours with the least cost, the first of equals, until none has any."""
    while len(parts) > 1:
        costs = [cost(a, b) for a, b in zip(parts, parts[1:], strict=False)]
        at = min(range(len(costs)), key=costs.__getitem__)
        if costs[at] >= 1e30:
            break
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
    return parts


def characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in plain else next(rest)) for byte in range(256)]


CHARACTERS = characters()
