"""Debian's package descriptions as pairs: a long text, and the synopsis that its maintainer wrote.

    python experiments/synopses/data.py DIR

asks `apt-get` for the English descriptions of the release that this machine runs (no root needed:
its lists go to DIR/apt) and writes DIR/train.jsonl and DIR/heldout.jsonl with {"prompt",
"completion"}, one package a line, and the task beside them. Packages of one source often share
paragraphs: all that share one are on the same side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments import debian

HELDOUT = 200
MIN_CHARS, MAX_CHARS = 200, 1200
SHARED = 40  # characters from which on a paragraph that two packages have makes them one group
PROMPT = "{text}\n\nSummarise this software package in one short phrase of at most ten words."


def descriptions(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Name, synopsis and long text of each package."""
    own = debian.update(folder)
    words = ["apt-get", *own, "indextargets", "--format", "$(FILENAME)", "Created-By: Translations"]
    files = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    for file in files:
        text = subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", file],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for entry in text.split("\n\n"):
            found = re.search(r"^Package: (.+)$", entry, re.M)
            both = re.search(r"^Description-en: (.+)\n((?: .*(?:\n|$))+)", entry, re.M)
            if found and both:
                yield found[1], both[1].strip(), plain(both[2])


def plain(text: str) -> str:
    """A description's text: one line a paragraph, without the format's marks."""
    lines = ["" if line.strip() == "." else line.strip() for line in text.splitlines()]
    paragraphs = re.split(r"\n{2,}", "\n".join(lines))
    return "\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def groups(texts: list[str]) -> list[int]:
    """For each text the number of its group: texts that share a paragraph are in one."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        for paragraph in text.split("\n"):
            if len(paragraph) >= SHARED:
                parent[root(i)] = root(first.setdefault(paragraph, i))
    return [root(i) for i in range(len(texts))]


def main() -> None:
    """Writes the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found = {(name, long): synopsis for name, synopsis, long in descriptions(args.folder)}
    pairs = sorted(
        (name, long, synopsis)
        for (name, long), synopsis in found.items()
        if MIN_CHARS <= len(long) <= MAX_CHARS
    )
    by_hash = lambda number: hashlib.sha256(pairs[number][1].encode()).digest()
    group = groups([long for _, long, _ in pairs])
    heldout: set[int] = set()
    # Whole groups by their hash, one package of each, so that no text is asked for twice.
    asked = sorted(set(group), key=by_hash)[:HELDOUT]
    heldout.update(asked)
    sides = {"train": [], "heldout": []}
    for number, pair in enumerate(pairs):
        if group[number] not in heldout:
            sides["train"].append(pair)
        elif number == group[number]:
            sides["heldout"].append(pair)
    for side, rows in sides.items():
        with open(args.folder / f"{side}.jsonl", "w", encoding="utf-8") as file:
            for _, long, synopsis in rows:
                row = {"prompt": PROMPT.format(text=long), "completion": synopsis}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{side}: {len(rows):,} packages")
    shutil.copy(Path(__file__).with_name("task.toml"), args.folder)


if __name__ == "__main__":
    main()
