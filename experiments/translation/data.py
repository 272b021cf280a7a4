"""Pairs of texts in two languages, from what Debian ships: English-Chinese and English-Spanish.

    python experiments/translation/data.py DIR

asks `apt-get` for the packages (no root needed: all goes to DIR/apt) and writes for both pairs
DIR/en_zh and DIR/en_es with train.jsonl and heldout.jsonl, {"prompt", "completion"} a line, and
the task beside them. What is held out are whole chapters of the handbook and whole books of the
Bible; a source text that is on both sides is left out of training.

- en_zh: paragraphs of The Debian Administrator's Handbook (GPL-2+ or CC BY-SA 3.0). The pages of
  all languages are made from one document, so paragraph i of a page is paragraph i in all.
- en_es: verses of the World English Bible and the Reina-Valera of 1909 (both public domain).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments import debian

XHTML = "{http://www.w3.org/1999/xhtml}"
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# More short texts instead of fewer long ones: a run of some minutes reads 65,536 tokens.
MIN_CHARS, MAX_CHARS = 30, 250
HELDOUT = {
    "en_zh": {"installation.html", "security.html"},
    "en_es": {"Ruth", "Jonah", "Phlm"},
}
# This chapter has the Hebrew count of verses in the Spanish module, one off the English one.
SHIFTED = {("Jonah", 2)}
PROMPT = {
    "en_zh": "Translate to Chinese:\n{text}",
    "en_es": "Translate to Spanish:\n{text}",
}


class Pair(NamedTuple):
    """A text and its translation, and the chapter or book that both stand in."""

    part: str
    source: str
    target: str


def squeeze(text: str) -> str:
    """The text with one space for each run of white space."""
    return " ".join(text.split())


def page(text: str) -> tuple[str | None, list[str]]:
    """The page that is above a page of the handbook, and the page's paragraphs.

    A paragraph that holds others, or a listing, counts as empty: places stay the same.
    """
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE.*?>", "", text, flags=re.S))
    up = [link.get("href") for link in root.iter(XHTML + "link") if link.get("rel") == "up"]
    paragraphs = []
    for part in root.iter(XHTML + "div"):
        if part.get("class") == "para":
            blocks = [*part.iter(XHTML + "div"), *part.iter(XHTML + "pre")]
            # iter() gives the paragraph itself, too.
            paragraphs.append("" if len(blocks) > 1 else squeeze("".join(part.itertext())))
    return (up[0] if up else None), paragraphs


def is_translated(source: str, target: str) -> bool:
    """Whether a paragraph is Chinese as a whole: pages keep what nobody translated in English."""
    letters = len(CHINESE.findall(target))
    latin = sum(len(word) for word in re.findall(r"[A-Za-z]+", target))
    return letters > latin and 0.15 < letters / max(len(source), 1) < 0.8


def handbook(folder: Path) -> Iterator[Pair]:
    """Paragraphs of the handbook in English and simplified Chinese."""
    for path in sorted((folder / "en-US").glob("*.html")):
        up, sources = page(path.read_text("utf-8"))
        _, targets = page((folder / "zh-CN" / path.name).read_text("utf-8"))
        if len(sources) != len(targets):
            raise SystemExit(f"{path.name}: {len(sources)} paragraphs, Chinese {len(targets)}")
        chapter = path.name if up in (None, "index.html") else up
        for source, target in zip(sources, targets, strict=True):
            if is_translated(source, target):
                yield Pair(chapter, source, target)


def verse(osis: str) -> str:
    """The text of a verse in OSIS: without notes, titles and marks; a space where they stood."""
    # A verse may open what another one closes, so it is no tree: tags are read one by one.
    text = re.sub(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.S)
    # Words are marked one by one, and letters of one word as well: no space for those.
    text = re.sub(r"</?(w|hi|divineName|transChange|seg)\b[^>]*>", "", text)
    text = squeeze(re.sub(r"<[^>]*>", " ", text)).replace("¶", "")
    return re.sub(r" ([,.;:?!’”])", r"\1", re.sub(r"([“‘¿¡(]) ", r"\1", text)).strip()


def bible(folder: Path) -> Iterator[Pair]:
    """Verses that both Bibles have, by book, chapter and number."""
    from pysword.modules import SwordModules

    modules = SwordModules(str(folder))
    modules.parse_modules()
    english = modules.get_bible_from_module("engWEB2015eb")
    spanish = modules.get_bible_from_module("spaRV1909eb")
    books = {
        book.osis_name: book
        for part in spanish.get_structure().get_books().values()
        for book in part
    }
    for part in english.get_structure().get_books().values():
        for book in part:
            other = books.get(book.osis_name)
            if other is None:
                continue
            for chapter in range(1, min(book.num_chapters, other.num_chapters) + 1):
                if (book.osis_name, chapter) in SHIFTED:
                    continue
                # Where one counts a verse more, the last has no fellow.
                verses = zip(
                    english.get_iter(books=[book.name], chapters=[chapter], clean=False),
                    spanish.get_iter(books=[other.name], chapters=[chapter], clean=False),
                    strict=False,
                )
                for source, target in ((verse(a), verse(b)) for a, b in verses):
                    if source and target:
                        yield Pair(book.osis_name, source, target)


def split(pairs: list[Pair], heldout: set[str]) -> tuple[list[Pair], list[Pair]]:
    """The pairs to learn from, in a shuffled order, and those of the parts that are held out."""
    short = [pair for pair in pairs if MIN_CHARS <= len(pair.source) <= MAX_CHARS]
    held = [pair for pair in short if pair.part in heldout]
    asked = {pair.source for pair in held} | {pair.target for pair in held}
    train = [
        pair
        for pair in short
        if pair.part not in heldout and pair.source not in asked and pair.target not in asked
    ]
    random.Random(0).shuffle(train)
    return train, held


def write(name: str, pairs: list[Pair], folder: Path) -> None:
    """The two files of one pair of languages, and its task."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, rows in zip(("train", "heldout"), split(pairs, HELDOUT[name]), strict=True):
        with open(folder / f"{side}.jsonl", "w", encoding="utf-8") as file:
            for pair in rows:
                row = {
                    "prompt": PROMPT[name].format(text=pair.source),
                    "completion": pair.target,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{name}: {len(pairs):,} pairs; {side}: {len(rows):,}")
    shutil.copy(Path(__file__).with_name(f"{name}.toml"), folder)


def main() -> None:
    """Writes both pairs of languages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    packages = ["debian-handbook", "sword-text-web", "sword-text-sparv"]
    share = debian.unpack(packages, args.folder) / "usr" / "share"
    pages = share / "doc" / "debian-handbook" / "html"
    write("en_zh", list(handbook(pages)), args.folder / "en_zh")
    write("en_es", list(bible(share / "sword")), args.folder / "en_es")


if __name__ == "__main__":
    main()
