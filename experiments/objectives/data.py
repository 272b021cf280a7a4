"""Makes labelled texts of the standard library's source: from which package are these lines?

    python experiments/objectives/data.py runs/packages

Writes train.jsonl and heldout.jsonl, 100 and 40 pieces of twelve lines for each of seven packages.
Files are on one side of the split alone.
"""

import json
import random
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("asyncio", "email", "http", "importlib", "multiprocessing", "unittest", "xml")
LINES, TRAIN, HELDOUT = 12, 100, 40


def pieces(text: str) -> list[str]:
    """Cuts a text every twelve lines; what is shorter than half of that is left out."""
    lines = [line for line in text.splitlines() if line.strip()]
    cut = [lines[at : at + LINES] for at in range(0, len(lines), LINES)]
    return ["\n".join(piece) for piece in cut if len(piece) >= LINES // 2]


def split(folder: Path, draw: random.Random) -> tuple[list[str], list[str]]:
    """Pieces of a package to learn from, and pieces of other files of it."""
    paths = [p for p in sorted(folder.rglob("*.py")) if not {"test", "tests"} & set(p.parts)]
    draw.shuffle(paths)
    heldout: list[str] = []
    while paths and len(heldout) < 1.5 * HELDOUT:
        heldout += pieces(paths.pop().read_text("utf-8"))
    train = [piece for path in paths for piece in pieces(path.read_text("utf-8"))]
    if len(train) < TRAIN:
        raise SystemExit(f"{folder}: {len(train)} pieces, expected {TRAIN} at least")
    return draw.sample(train, TRAIN), draw.sample(heldout, HELDOUT)


def main(out: Path) -> None:
    """Writes both sides."""
    draw = random.Random(0)
    library = Path(sysconfig.get_path("stdlib"))
    rows: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for package in PACKAGES:
        for side, texts in zip(rows, split(library / package, draw), strict=True):
            rows[side] += [{"text": text, "label": package} for text in texts]
    out.mkdir(parents=True, exist_ok=True)
    for side, found in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (out / f"{side}.jsonl").write_text(lines, "utf-8")
        print(f"{out / side}.jsonl: {len(found)} texts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
